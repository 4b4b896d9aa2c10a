"""An address that pages of our own are served at."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from common.errors import AttuneError
from training.web.serving import listening, make_server


def test_who_asks_before_there_is_a_server_waits_for_it() -> None:
    with listening("127.0.0.1", 0) as listener:
        where = listener.getsockname()
        with socket.create_connection(where, timeout=5):
            pass


def test_an_address_is_taken_once_even_before_it_is_served() -> None:
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        refused = pytest.raises(AttuneError, match=f"cannot listen on 127.0.0.1:{port}: .* --port")
        with refused, listening("127.0.0.1", port):
            pass


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_the_newer_loopback_address_too() -> None:
    try:
        with (
            listening("::1", 0) as listener,
            socket.create_connection(listener.getsockname()[:2], timeout=5),
        ):
            assert listener.family == socket.AF_INET6
    except AttuneError as error:
        pytest.skip(str(error))


def test_a_server_that_must_end_does_not_wait_for_listeners() -> None:
    """A page follows a clip for as long as it is made."""
    app, over = FastAPI(), threading.Event()

    @app.get("/events")
    def events() -> StreamingResponse:
        def told() -> Iterator[str]:
            while not over.is_set():
                yield "data: making\n\n"
                over.wait(0.05)

        return StreamingResponse(told())

    with listening("127.0.0.1", 0) as listener:
        server = make_server(app)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), timeout=30) as page:
                page.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert page.recv(1)
                server.should_exit = True
                thread.join(60)
                assert not thread.is_alive()
        finally:
            over.set()
            server.force_exit = True
            thread.join(60)
