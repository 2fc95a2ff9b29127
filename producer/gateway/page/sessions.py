"""Sessions of people who have logged in to the page with an API key."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from starlette.requests import Request
from starlette.responses import Response

from ...openai_api.errors import ApiError
from ..keys import ANYBODY, Caller, Keys

COOKIE = "sailq-session"
_SECONDS = 30 * 86_400


class Sessions:
    """Signed cookies. They end when a person logs out, with the gateway's process, with their key, or after 30 days.

    A cookie is `KEY.END.SIGNATURE`: the SHA-256 of the API key, and seconds since the epoch.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._secret = secrets.token_bytes(32)
        self._ended: dict[str, int] = {}
        """The cookies of those who have logged out, with their ends."""

    def log_in(self, key: str, request: Request, response: Response) -> bool:
        """Sets the cookie of the caller with this API key. Returns False, and sets none, if the key may not see the
        page."""
        caller = self._keys.caller(f"Bearer {key}")
        if caller is None or not caller.may_see_page:
            return False
        text = f"{caller.id}.{int(time.time()) + _SECONDS}"
        response.set_cookie(
            COOKIE, f"{text}.{self._sign(text)}", max_age=_SECONDS, httponly=True, samesite="lax",
            secure=request.url.scheme == "https",
        )
        return True

    def caller(self, request: Request) -> Caller | None:
        """Who sends a request; None for nobody who has logged in."""
        if not self._keys.given:
            return ANYBODY
        cookie = request.cookies.get(COOKIE, "")
        text, _, signature = cookie.rpartition(".")
        name, _, end = text.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(text).encode()) or int(end) < time.time():
            return None
        if cookie in self._ended:
            return None
        caller = self._keys.with_id(name)
        return caller if caller is not None and caller.may_see_page else None

    def log_out(self, request: Request, response: Response) -> None:
        """Ends the session, also for copies of its cookie. Call it for a session that `caller` knows."""
        now, cookie = time.time(), request.cookies.get(COOKIE, "")
        self._ended = {one: end for one, end in self._ended.items() if end > now}
        if cookie:
            self._ended[cookie] = int(cookie.split(".")[1])
        response.delete_cookie(COOKIE)

    def token(self, request: Request) -> str:
        """What each form of this session must send along (`check`): other sites cannot know it."""
        return self._sign("form " + request.cookies.get(COOKIE, ""))

    def check(self, request: Request, token: str) -> None:
        """Raises ApiError (403) for a request that another site's page has sent."""
        if not hmac.compare_digest(token.encode(), self.token(request).encode()):
            raise ApiError(403, "The form has expired: load the page again.", code="invalid_token",
                           type="permission_error")

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()
