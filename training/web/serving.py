"""Listen on an address, and serve an app there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from common.errors import AttuneError


def host_names(host: str) -> list[str]:
    """Names under which this machine reaches a server that listens on `host`."""
    return ["127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host]


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on an address; a client that connects early waits for the server.

    Raises:
        AttuneError: the address is taken, or is not one of this machine.
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
    """A server that takes a client's address from the connection, not from headers."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            # Else a page that still receives a clip would keep the server from ending.
            timeout_graceful_shutdown=3,
        )
    )


def serve(app: FastAPI, host: str, port: int, about: str) -> None:
    """Print the address, with `about` behind it, and serve until Ctrl-C."""
    with listening(host, port) as listener:
        print(f"http://{host_names(host)[-1]}:{port} ({about}); Ctrl-C ends it", flush=True)
        make_server(app).run(sockets=[listener])
