"""Pages of our own: an address to listen on, and a server there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from common.errors import AttuneError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

LOCAL_NAMES = ["127.0.0.1", "localhost", "[::1]"]
"""Under which this machine asks itself."""


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on an address: who asks before there is a server waits for it.

    Raises:
        AttuneError: it is taken, or not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except OSError as error:
            raise AttuneError(
                f"cannot listen on {host}:{port}: {error.strerror}; take another --port"
            ) from error
        yield listener


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server for an app.  A client is who is connected, whatever its headers claim."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            # A page that follows a clip would else keep a server that is told to end.
            timeout_graceful_shutdown=3,
        )
    )


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until Ctrl-C."""
    make_server(app).run(sockets=[listener])
