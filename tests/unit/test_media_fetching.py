"""Fetching from a real server: the limit of a request, and redirects to no address.
tests/integration/test_hostile_requests.py has the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from media_server import Listener, media_server

from sailq.producer.media_fetching import MediaFetcher
from sailq.shared.errors import BadMedia, BadRequest, SailqError

IMAGE = bytes(1000)


@pytest.fixture
def media() -> Iterator[Listener]:
    with media_server(IMAGE, 9) as listener:
        yield listener


def fetch(media: Listener, *paths: str, most: int = 2500) -> list[bytes]:
    fetcher = MediaFetcher([f"127.0.0.1:{media.port}", ".example"], max_bytes=most, max_seconds=60)
    return asyncio.run(fetcher.fetch([f"http://127.0.0.1:{media.port}{path}" for path in paths]))


def test_the_media_of_a_request_are_limited_together(media: Listener) -> None:
    assert fetch(media, "/image", "/to-image") == [IMAGE] * 2
    with pytest.raises(BadMedia):
        fetch(media, *["/image"] * 3)
    assert [line.split()[1] for line in media.seen].count("/image") == 5


@pytest.mark.parametrize(("path", "error"), [("/to-nonsense", BadRequest), ("/to-label", BadMedia)])
def test_a_redirect_to_no_address_is_an_error_of_the_request(
    media: Listener, path: str, error: type[SailqError]
) -> None:
    with pytest.raises(error):
        fetch(media, path)
