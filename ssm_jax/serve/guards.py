"""ASGI middleware: bounded requests, known host names, and headers that keep pages private."""

from __future__ import annotations

import ipaddress
import json

from starlette.datastructures import Headers as RequestHeaders
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Headers:
    """Adds headers to every answer: nothing is kept by a cache, framed, or guessed."""

    def __init__(self, app: ASGIApp):
        """Wraps an application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


class LocalHosts:
    """Answers only requests to a loopback name: a name of elsewhere that leads here is refused."""

    def __init__(self, app: ASGIApp, loopback: bool):
        """Wraps an application.

        Args:
          app: the application.
          loopback: whether to check at all.
        """
        self.app, self.loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and self.loopback:
            host = RequestHeaders(scope=scope).get("host", "")
            if not _is_local(host):
                text = f"this server answers to localhost only, not to “{host}”"
                await _refused(400, text)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Refuses a request whose body is too long, by what it says or by what it turns out to be."""

    def __init__(self, app: ASGIApp, limit: int):
        """Wraps an application.

        Args:
          app: the application.
          limit: bytes at most.
        """
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        text = f"an upload may have {self.limit:,} bytes at most"
        said = RequestHeaders(scope=scope).get("content-length", "0")
        if not said.isdecimal() or int(said) > self.limit:
            await _refused(413, text)(scope, receive, send)
            return
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise HTTPException(413, text)
            return message

        await self.app(scope, counting, send)


def _is_local(host: str) -> bool:
    """Whether a Host header, with or without a port, is a name of this machine alone."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def _refused(status: int, text: str) -> Response:
    body = json.dumps({"error": text}, ensure_ascii=False)
    return Response(body, status, {"connection": "close"}, media_type="application/json")
