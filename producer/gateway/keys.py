"""API keys: who may ask, and how much."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from sailq.shared.errors import BadRequest
from sailq.shared.jobs import Priority
from sailq.shared.validation import Digest, Name, StrictModel, is_identifier, reason

from ..openai_api.errors import ApiError

VARIABLE = "SAILQ_GATEWAY_KEYS"
"""The environment variable that may hold the keys, as the file does."""
_log = logging.getLogger("sailq.gateway")


class ApiKey(StrictModel):
    """One client of the gateway.

    Attributes:
        sha256: the hash of its key, hex. A key has 256 random bits, so its hash need not be slow.
        priority: of its jobs; also the highest that a request may ask for.
        rate: requests per second, or None: no limit. Several gateways count together.
        burst: requests that may come at once; by default as many as `rate` allows in a second, at least one.
        max_queued: jobs that may wait or run at a time, or None: no limit.
        page: whether it may log in to the page, which shows the results of all keys.
    """

    sha256: Digest
    priority: Priority = "normal"
    rate: Annotated[float, Field(gt=0, le=100_000)] | None = None
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_queued: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    page: bool = False


class Caller:
    """Who sends a request. `name` is empty if the gateway has no keys.

    `id` is what Redis keys are named by: a hash, so that nobody who knows a name can find the ids of its jobs.
    """

    def __init__(self, name: str, key: ApiKey | None) -> None:
        self.name = name
        self.id = key.sha256 if key else ""
        self.rate = key.rate if key else None
        self.burst = (key.burst or max(1, round(key.rate or 1))) if key else 1
        self.max_queued = key.max_queued if key else None
        self.may_see_page = key is None or key.page
        self._priority: Priority = key.priority if key else "normal"
        self._may_be_first = key is None or key.priority == "high"

    def arguments(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Those arguments of `Client.submit` that a request gets for those that it sets: its key's priority, and a
        conversation that no other key can name: a key's name has no dot. Raises ApiError (400, 403)."""
        if asked.get("priority") == "high" and not self._may_be_first:
            raise ApiError(403, "This key may not ask for high priority.", code="priority_not_allowed",
                           type="permission_error", param="priority")
        arguments = {"priority": self._priority, **asked}
        if self.name and "conversation" in arguments:
            arguments["conversation"] = own = f"{self.name}.{arguments['conversation']}"
            if not is_identifier(own):  # it is too long: each part of it may be in it
                what = f"With this key, a conversation's name has at most {127 - len(self.name)} characters."
                raise ApiError(400, what, code="invalid_value", param="conversation")
        return arguments


ANYBODY = Caller("", None)
_FILE = TypeAdapter(dict[Name, ApiKey])


class Keys:
    """The keys in a file, or else in the environment. The file is read again when it changes."""

    def __init__(self, path: Path | None) -> None:
        """Raises BadRequest for keys that cannot be read."""
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._callers: Mapping[str, Caller] = {}
        text = os.environ.get(VARIABLE)
        self.given = path is not None or text is not None
        if path is not None:
            self._load(path)
        elif text is not None:
            self._callers = _read(text, VARIABLE)

    def __len__(self) -> int:
        return len(self._callers)

    def caller(self, authorization: str | None) -> Caller | None:
        """Who sends this `Authorization` header; None for nobody who is known."""
        if not self.given:
            return ANYBODY
        self._renew()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        return self._callers.get(hashlib.sha256(key.strip().encode()).hexdigest())

    def with_id(self, caller: str) -> Caller | None:
        """The caller with this id."""
        self._renew()
        return self._callers.get(caller)

    def named(self, name: str) -> Caller:
        """The caller with this name; one without rights of its own if its key is gone."""
        self._renew()
        found = (caller for caller in self._callers.values() if caller.name == name)
        return next(found, ANYBODY if not name else Caller(name, ApiKey(sha256="0" * 64)))

    def _renew(self) -> None:
        if self._path is not None:
            try:
                self._load(self._path)
            except BadRequest as error:
                _log.warning("the earlier keys stay in use: %s", error)

    def _load(self, path: Path) -> None:
        """Reads the file if it has changed. Raises BadRequest."""
        stamp = self._stamped(path)
        if stamp != self._stamp:
            self._stamp = stamp
            self._callers = _read(_text(path), str(path))
            _log.info("read %d keys from %s", len(self._callers), path)

    @staticmethod
    def _stamped(path: Path) -> tuple[int, int]:
        try:
            status = path.stat()
        except OSError as error:
            raise BadRequest(f"The keys in {path} cannot be read: {error.strerror}.") from None
        return status.st_mtime_ns, status.st_ino


def make_key(name: str) -> tuple[str, dict[str, Any]]:
    """A new key for `name`, and its entry for the file. Raises BadRequest for a name that cannot be one."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    entry = {name: {"sha256": hashlib.sha256(key.encode()).hexdigest()}}
    _read(json.dumps(entry), "--new-key")
    return key, entry


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise BadRequest(f"The keys in {path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise BadRequest(f"The keys in {path} cannot be read: the file is not UTF-8.") from None


def _read(text: str, source: str) -> Mapping[str, Caller]:
    """The callers by the hash of their key. Errors do not quote the text: it may hold a key."""
    try:
        keys = _FILE.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"] if step != "[key]")
        raise BadRequest(f"The keys in {source} cannot be read: {where and f'{where}: '}{reason(first)}.") from None
    callers = {key.sha256: Caller(name, key) for name, key in keys.items()}
    if len(callers) < len(keys):
        raise BadRequest(f"The keys in {source} cannot be used: two of them are the same.")
    return callers
