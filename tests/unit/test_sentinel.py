"""URLs of sentinels, before anything is sent."""

from __future__ import annotations

import re

import pytest

from sailq.shared.connection import connect, without_password
from sailq.shared.errors import BadRequest
from sailq.shared.sentinel import parse

FORM = "^A URL of sentinels must have the form redis"
OPTION = "has an unknown option"


def test_a_urls_parts() -> None:
    found = parse("redis+sentinel://us%40er:p%40ss@h1,h2:2,[::1]:3/queue/4?socket_timeout=3&sentinel_password=a%26b")
    assert found.hosts == (("h1", 26379), ("h2", 2), ("::1", 3)) and found.name == "queue" and not found.tls
    assert found.server == {"username": "us@er", "password": "p@ss", "db": 4, "socket_timeout": 3.0}
    assert found.sentinel == {"password": "a&b"}
    assert parse("redis+sentinel://h/queue").server == {"db": 0}


def test_tls_is_for_the_sentinels_too() -> None:
    found = parse("rediss+sentinel://:p@h/queue/0?ssl_ca_certs=/ca&sentinel_username=u&sentinel_password=q")
    assert found.tls and found.server == {"password": "p", "db": 0, "ssl_ca_certs": "/ca"}
    assert found.sentinel == {"ssl_ca_certs": "/ca", "username": "u", "password": "q"}


@pytest.mark.parametrize(("rest", "said"), [
    ("", FORM), ("h1:26379", FORM), ("h1/", FORM), ("/queue/0", FORM), ("h1/queue/zero", FORM), ("h1/queue/²", FORM),
    ("h1/queue/0/1", FORM),
    ("h1,/queue/0", FORM), ("h1:s3cret/queue/0", FORM), ("u:s3cret@x@h1/queue/0", FORM),
    ("u:s3cret/x@h1/queue/0", FORM), ("u:s3cret?x@h1/queue/0", FORM),
    ("u:s3cret@h1/queue/0?sentinel_password=s3cret@x", FORM),
    ("h1/queue/0?nonsense=1", OPTION), ("h1/queue/0?encoding=zzz", OPTION), ("h1/queue/0?retry=1", OPTION),
    ("h1/queue/0?decode_responses=true", OPTION), ("h1/queue/0?max_connections=3", OPTION),
    ("h1/queue/0?socket_timeout=long", "socket_timeout"),
    ("h1/queue/0?ssl_ca_certs=/ca", "rediss.sentinel"),
])
def test_a_url_that_cannot_be_read_is_told_without_secrets(rest: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as error:
        connect(f"redis+sentinel://{rest}")
    assert re.fullmatch(r"[^\n]+\.", str(error.value)) and "s3cret" not in str(error.value)


@pytest.mark.parametrize("url", ["redis+sentinel://u:s3cret@h1,h2/queue/0", "rediss+sentinel://:s3cret@h1/queue/0",
                                 "rediss+sentinel://h1/queue/0?ssl_ca_certs=/ca&sentinel_password=s3cret"])
def test_no_password_is_shown(url: str) -> None:
    assert without_password(url) == url.replace("s3cret", "***")
