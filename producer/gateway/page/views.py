"""Renders the page's HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...archive.caption import Caption
from ...captioning.batch import number, seconds
from .fleet import Glance
from .texts import LANGUAGES, translator

_CARD_CHARACTERS = 600
"""The most characters of a caption on a card. The clip's own view has all."""


class Views:
    """The templates. All values are escaped."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(moment=_moment, seconds=seconds, number=number, short=_short, pretty=_pretty)

    def page(self, template: str, language: str, **values: Any) -> str:
        return self._environment.get_template(template).render(t=translator(language), language=language, **values)

    def caption_event(self, caption: Caption) -> bytes:
        """The server-sent event of a new caption, with its card in each language."""
        cards = {language: self.page("cards.html", language, captions=[caption]) for language in LANGUAGES}
        return _event("caption", {
            "id": caption.id, "camera": caption.camera, "failed": caption.error is not None, "html": cards,
        })

    def fleet_event(self, fleet: Glance) -> bytes:
        return _event("fleet", {language: self.page("fleet.html", language, fleet=fleet) for language in LANGUAGES})


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _moment(time: float) -> Mapping[str, str]:
    """A time in ISO 8601 form, which the browser shows in its own zone, and as text."""
    at = datetime.fromtimestamp(time, timezone.utc)
    return {"iso": at.isoformat(timespec="milliseconds"), "text": at.strftime("%Y-%m-%d %H:%M:%S UTC")}


def _short(text: str) -> str:
    return text if len(text) <= _CARD_CHARACTERS else text[:_CARD_CHARACTERS] + "…"


def _pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
