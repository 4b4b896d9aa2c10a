"""Filter of the requests to our servers, and the headers of every answer."""

from __future__ import annotations

import asyncio

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 10_000
"""Largest body of a request, whether it states its length or not."""
SLOWEST_S = 10.0
"""Time in which a body must arrive."""
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Content policy of every page: a page loads nothing from other machines."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Robots-Tag": "noindex",
}


class RequestFilter:
    """Refuses requests of other pages and large or slow bodies; adds the headers."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        """Args:
        policy: what a page may load in addition to `POLICY`: styles and sounds.
        """
        self._app = app
        self._headers = HEADERS | {"Content-Security-Policy": f"{POLICY}; {policy}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        async def refuse(status: int, why: str) -> None:
            answer = JSONResponse({"error": why}, status, {"connection": "close"})
            await answer(scope, receive, send_with_headers)

        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD") and _is_foreign(headers):
            return await refuse(403, "asked for by another page")
        try:
            body = await asyncio.wait_for(_read(headers, receive), SLOWEST_S)
        except TimeoutError:
            return await refuse(408, "the request did not arrive in time")
        if body is None:
            return await refuse(413, "the request is too large")
        given = False

        async def receive_again() -> Message:
            nonlocal given
            if given:
                return await receive()  # the message that the client has gone
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_again, send_with_headers)


async def refuse_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer to a request with wrong fields: one line about the first of them."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)


def _is_foreign(headers: Headers) -> bool:
    origin = headers.get("origin")
    if origin is not None and origin.split("://")[-1] != headers.get("host"):
        return True
    return headers.get("sec-fetch-site") in ("cross-site", "same-site")


async def _read(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body; None if it is, or states to be, larger than `MOST_BYTES`."""
    stated = headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated[:20]) > MOST_BYTES:
        return None
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return body
