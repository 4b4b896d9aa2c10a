"""Addresses of Ray clusters."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from common.errors import AttuneError

_PATIENCE_S = 5.0


def check_address(address: str, given_as: str) -> None:
    """Refuse an address where nobody listens; Ray itself tries for minutes before it says so.

    Args:
        address: `HOST:PORT` or `ray://HOST:PORT`; others (`auto`, `local`) are left to Ray.
        given_as: what the user set, for the message.

    Raises:
        AttuneError: no connection within some seconds.
    """
    try:
        place = urlsplit("//" + address.removeprefix("ray://"))
        host, port = place.hostname, place.port
    except ValueError as error:
        raise AttuneError(f"{given_as}{address}: {error}; expected HOST:PORT") from error
    if host is None or port is None:
        return
    try:
        socket.create_connection((host, port), timeout=_PATIENCE_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise AttuneError(
            f"{given_as}{address}: nobody listens there ({reason}); start the cluster, or correct "
            "the address"
        ) from error
