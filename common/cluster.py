"""Ray: join a cluster, or start a local Ray."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from common.errors import AttuneError, one_line


@contextmanager
def ray_session(address: str, given_as: str, **options: Any) -> Iterator[None]:
    """Join the cluster at an address; with `local`, start a Ray that ends with this process.

    Args:
        given_as: what the user set, for messages: `RAY_ADDRESS=`.
        options: further arguments of `ray.init`.

    Raises:
        AttuneError: there is no cluster at that address, or Ray does not start.
    """
    import ray

    check_address(address, given_as)
    if address == "local":
        options["include_dashboard"] = False
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray has no narrower class, e.g. for a node that starts too slowly
        raise AttuneError(f"cannot start Ray ({given_as}{address}): {one_line(error)}") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def check_address(address: str, given_as: str) -> None:
    """Refuse an address where nothing listens. Ray itself tries for minutes before it gives up.

    Args:
        address: `HOST:PORT` or `ray://HOST:PORT`; Ray checks others (`auto`, `local`) itself.
        given_as: the option or variable that the user set, for the message.

    Raises:
        AttuneError: no connection within 5 s, or it is no address.
    """
    try:
        place = urlsplit("//" + address.removeprefix("ray://"))
        host, port = place.hostname, place.port
    except ValueError as error:
        raise AttuneError(f"{given_as}{address}: {error}; expected HOST:PORT") from error
    if host is None or port is None:
        return
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise AttuneError(
            f"{given_as}{address}: nobody listens there ({reason}); start the cluster, or correct "
            "the address"
        ) from error
