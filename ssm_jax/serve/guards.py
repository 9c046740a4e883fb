"""Rules that every request must keep to, and headers that keep pages private."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssm_jax.serve.limits import Limits

_HEADERS = {
    "cache-control": "no-store",
    # The pages name their own scripts by digest in a stricter policy; this one holds beside it.
    "content-security-policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_READING = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(?:\[(?P<address>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::\d+)?")
_LENGTH = re.compile(r"[0-9]{1,18}")
_GRACE = 60  # seconds after which the average speed of an upload counts
_WAIT = 0.25  # seconds between looks at the clock


class Guard:
    """ASGI middleware around the application."""

    def __init__(
        self, app: ASGIApp, limits: Limits, loopback: bool, ending: Callable[[], bool]
    ) -> None:
        """Wraps an application.

        Args:
          app: the application.
          limits: of an upload's bytes and time.
          loopback: whether only requests to a name of this machine are answered, so that no web
            page reaches the server under a name that was made to lead here.
          ending: whether the server is to end, so that nobody is waited for.
        """
        self._app, self._limits, self._loopback, self._ending = app, limits, loopback, ending
        # Names and boundaries of the parts take some bytes too.
        self._most = limits.upload_bytes + 1024 * (limits.files + 1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        refused = refusal(scope["method"], headers, self._loopback, self._most)
        if refused is not None:
            status, text = refused
            answer = JSONResponse({"error": text}, status, {"connection": "close"})
            await answer(scope, receive, sending)
            return
        await self._app(scope, self._bounded(receive), sending)

    def _bounded(self, receive: Receive) -> Receive:
        """Receives a body that must be neither too long nor too slow."""
        started, received, more = time.monotonic(), 0, True

        async def bounded() -> Message:
            nonlocal received, more
            if not more:  # what follows is that the client leaves
                return await receive()
            average = started + _GRACE + received / self._limits.bytes_per_second
            due = min(average, time.monotonic() + self._limits.idle_seconds)
            message = await self._in_time(receive, due)
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
            if received > self._most:
                raise _broken_off(413, f"an upload may have {self._most:,} bytes at most")
            return message

        return bounded

    async def _in_time(self, receive: Receive, due: float) -> Message:
        while True:
            with anyio.move_on_after(_WAIT):
                return await receive()
            if self._ending():
                raise _broken_off(503, "the server ends")
            if time.monotonic() > due:
                raise _broken_off(408, "the upload is too slow; try again, or zip the files")


def refusal(method: str, headers: Headers, loopback: bool, most: int) -> tuple[int, str] | None:
    """Why a request is refused.

    Args:
      method: such as "POST".
      headers: of the request.
      loopback: whether it must be to a name of this machine.
      most: bytes that its body may have.

    Returns:
      A status and a line for people; None if there is nothing against it.
    """
    host = headers.get("host", "")
    if loopback and not _is_local(host):
        return 400, f"this server answers to localhost only, not to “{host}”"
    if "transfer-encoding" in headers and "content-length" in headers:
        return 400, "a request has either a Content-Length or a Transfer-Encoding, not both"
    if method not in _READING and _is_foreign(headers, host):
        return 403, "this is done for this server's own page only"
    said = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(said) or int(said) > most:
        return 413, f"an upload may have {most:,} bytes at most"
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_local(host: str) -> bool:
    """Whether a Host header, with or without a port, is a name of this machine alone."""
    found = _HOST.fullmatch(host)
    return found is not None and is_loopback(found["address"] or found["name"] or "")


def _is_foreign(headers: Headers, host: str) -> bool:
    """Whether a browser sends a request for a page that is not this server's."""
    own = (f"http://{host}", f"https://{host}")
    if headers.get("origin", own[0]) not in own:
        return True
    return headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _broken_off(status: int, text: str) -> HTTPException:
    return HTTPException(status, text, {"connection": "close"})
