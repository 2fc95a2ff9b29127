"""From a command's flags to settings: a flag comes before the environment, and that before the default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import BadRequest
from .settings import Settings


def load_settings(**flags: Any) -> Settings:
    """Settings with the `flags` that are not None. Raises BadRequest naming the first that cannot be used."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"SAILQ_{str(first['loc'][0]).upper()}"
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise BadRequest(f"{name} is {first['input']!r}: {reason}.") from None


def model_name(model: str) -> str:
    """The name under which a model is served: `model` itself, or what its directory is called."""
    if "/" not in model and not Path(model).is_dir():
        return model
    name = Path(model).expanduser().resolve().name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:128] or "model"
