"""Addresses of Ray clusters."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from common.errors import AttuneError


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
