"""Addresses of Ray clusters, before Ray is asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.cluster import check_address
from common.errors import AttuneError
from common.storage import open_store
from pipeline.planning import pipeline_session
from training.evaluation.ablation.run import _on_ray


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Where nobody listens, and nobody else can begin to."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_is_good_when_somebody_listens(scheme: str, silent_port: int):
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"{scheme}127.0.0.1:{server.getsockname()[1]}", "RAY_ADDRESS=")
    where = f"{scheme}127.0.0.1:{silent_port}"
    with pytest.raises(AttuneError, match=f"RAY_ADDRESS={where}: nobody listens there") as caught:
        check_address(where, "RAY_ADDRESS=")
    assert "\n" not in str(caught.value)


def test_what_is_no_host_and_port():
    for rays_own in ("auto", "local"):
        check_address(rays_own, "--ray ")
    with pytest.raises(AttuneError, match=r"--ray host:port: .*expected HOST:PORT"):
        check_address("host:port", "--ray ")
    with pytest.raises(AttuneError, match=r"expected HOST:PORT"):
        check_address("[::1", "--ray ")


def test_both_programs_say_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_port: int
):
    where = f"127.0.0.1:{silent_port}"
    monkeypatch.setenv("RAY_ADDRESS", where)
    refused = pytest.raises(AttuneError, match=f"RAY_ADDRESS={where}: nobody listens")
    with refused, pipeline_session(open_store(str(tmp_path))):
        pass
    with pytest.raises(AttuneError, match=f"--ray {where}: nobody listens"):
        list(_on_ray([None], where))  # type: ignore[list-item]
