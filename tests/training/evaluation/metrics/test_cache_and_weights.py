"""Embeddings are kept by content; weights are fetched whole, or a line says why not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from small_backbones import write_vggish
from tiny_runs import run_command

from common.errors import AttuneError
from training.evaluation.metrics import weights
from training.evaluation.metrics.backbones.latents import MelStatistics
from training.evaluation.metrics.cache import EmbeddingCache
from training.evaluation.metrics.weights import Source, fetch_all


class Counting(MelStatistics):
    calls = 0

    def embed(self, wave):
        self.calls += 1
        return super().embed(wave)


def test_embeddings_are_made_once_per_content(tmp_path: Path):
    backbone, cache = Counting(), EmbeddingCache(tmp_path)
    wave = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    first = cache.embed(backbone, wave)
    np.testing.assert_array_equal(EmbeddingCache(tmp_path).embed(backbone, wave.copy()), first)
    assert backbone.calls == 1
    cache.embed(backbone, wave * np.float32(1.0001))
    assert backbone.calls == 2
    other = Counting()
    other.facts = other.facts | {"weights_sha256": "other"}
    cache.embed(other, wave)
    assert other.calls == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_damaged_embeddings_are_made_again_and_nothing_is_unpickled(tmp_path: Path):
    backbone, cache = Counting(), EmbeddingCache(tmp_path)
    wave = np.ones(16_000, np.float32)
    first = cache.embed(backbone, wave)
    path = cache.path(backbone, wave)
    whole = path.read_bytes()
    pickled = np.array([{"a": 1}], dtype=object)
    for damage in (b"", whole[: len(whole) // 2], b"not a zip"):
        path.write_bytes(damage)
        np.testing.assert_array_equal(cache.embed(backbone, wave), first)
    np.savez(path, embeddings=pickled)
    np.testing.assert_array_equal(cache.embed(backbone, wave), first)
    assert backbone.calls == 5 and path.read_bytes() == whole


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and folder of a server on loopback."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def test_weights_are_fetched_once_and_failures_say_why(site: tuple[str, Path], tmp_path: Path):
    address, folder = site
    write_vggish(folder / "vggish.pth")
    (folder / "page.pt").write_text("<html>moved</html>")
    sources = (
        Source("vggish", "vggish.pth", f"{address}/vggish.pth"),
        Source("page", "page.pt", f"{address}/page.pt"),
        Source("gone", "gone.pt", f"{address}/gone.pt"),
        Source("offline", "offline.pt", "http://127.0.0.1:1/offline.pt"),
    )
    lines: list[str] = []
    target = tmp_path / "weights"
    assert fetch_all(target, sources, lines.append) == ["page", "gone", "offline"]
    assert [path.name for path in target.iterdir()] == ["vggish.pth"]
    assert torch.load(target / "vggish.pth", weights_only=True)
    assert "fetched" in lines[0] and "something else than weights" in lines[1]
    assert "404" in lines[2] and "refused" in lines[3]
    assert all("\n" not in line for line in lines)
    (folder / "vggish.pth").unlink()
    again: list[str] = []
    fetch_all(target, sources[:1], again.append)
    assert "is there" in again[0]


def test_hub_weights_become_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub
    from safetensors.torch import load_file

    def download(repository: str, local_dir: Path, allow_patterns: list[str]) -> None:
        if repository != "laion/clap":
            raise RuntimeError("no such repository\n")
        Path(local_dir).mkdir(exist_ok=True)
        shared = torch.ones(3)
        if "pytorch_model.bin" in allow_patterns:
            torch.save({"a": shared, "b": shared}, Path(local_dir) / "pytorch_model.bin")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    weights.fetch(Source("clap", "clap", "hub:laion/clap"), tmp_path / "clap")
    assert [path.name for path in (tmp_path / "clap").iterdir()] == ["model.safetensors"]
    assert set(load_file(tmp_path / "clap" / "model.safetensors")) == {"a", "b"}
    with pytest.raises(AttuneError, match="no such repository"):
        weights.fetch(Source("clap", "x", "hub:nobody/nothing"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_command_fetches_into_a_folder_and_fails_in_the_end(
    site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    address, folder = site
    write_vggish(folder / "vggish.pth")
    sources = (
        Source("vggish", "vggish.pth", f"{address}/vggish.pth"),
        Source("gone", "gone.pt", f"{address}/gone.pt"),
    )
    monkeypatch.setattr(weights, "SOURCES", sources)
    with pytest.raises(AttuneError, match="gone not fetched"):
        run_command("weights", "--weights", tmp_path / "w")
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["vggish.pth"]
    (tmp_path / "file").write_text("")
    with pytest.raises(AttuneError, match="--weights"):
        run_command("weights", "--weights", tmp_path / "file" / "w")
