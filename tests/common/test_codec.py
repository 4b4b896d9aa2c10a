"""The codec at run time: same codes as transformers, windows that agree, clear refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EncodecModel

from common import codec as codec_module
from common.codec import codec_identity, exact_float32, load_codec
from common.errors import AttuneError
from common.seanet import FastEncoder
from training.codec.config import CodecArchitecture
from training.codec.model import build_model
from training.codec.quantizer import ResidualQuantizerTrainer


def _folder(path: Path, ratios: tuple[int, ...] = (8, 5, 4, 2), rate: int = 16_000) -> Path:
    torch.manual_seed(0)
    model = build_model(
        CodecArchitecture(num_filters=4, hidden_size=16, codebook_size=64, ratios=ratios), rate
    )
    # Codebooks of random latents, so that codes mean something.
    wav = torch.randn(4, 1, rate) * 0.1
    trainer = ResidualQuantizerTrainer(model.quantizer, 0.99, 0.0)
    with torch.no_grad():
        trainer.start(model.encoder(wav), torch.Generator().manual_seed(0), iterations=3)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("codec") / "small")


def _noise(seconds: float, rate: int = 16_000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(round(seconds * rate))).astype(np.float32)


def test_codes_and_waveforms_equal_transformers_own(folder: Path):
    ours = load_codec(str(folder))
    theirs = EncodecModel.from_pretrained(folder).eval()
    wav = torch.from_numpy(_noise(1.234))[None]
    with torch.inference_mode():
        expected = theirs.encode(wav[:, None])
        decoded = theirs.decode(expected.audio_codes, expected.audio_scales)[0][:, 0]
    codes = ours.encode(wav)
    assert torch.equal(codes, expected.audio_codes[0])
    torch.testing.assert_close(ours.decode(codes), decoded, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 16_000])
def test_frames_are_the_ceiling_of_samples_over_hop(folder: Path, samples: int):
    ours = load_codec(str(folder))
    codes = ours.encode_track(_noise(samples / 16_000))
    frames = -(-samples // 320)
    assert codes.dtype == np.int16 and codes.shape == (4, frames)
    decoded = ours.decode(torch.from_numpy(codes.astype(np.int64))[None])
    assert decoded.shape == (1, 320 * frames)


@pytest.mark.parametrize(("rate", "ratios"), [(16_000, (8, 5, 4, 2)), (32_000, (8, 5, 4, 4))])
def test_windows_with_discarded_context_agree_with_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int, ratios: tuple[int, ...]
):
    ours = load_codec(str(_folder(tmp_path / "codec", ratios, rate)))
    wav = _noise(14.01, rate)
    whole = ours.encode(torch.from_numpy(wav)[None])[0].numpy()
    monkeypatch.setattr(codec_module, "WINDOW_S", 3.0)
    windowed = ours.encode_track(wav)
    assert windowed.shape == whole.shape
    # What may differ: rounding, and what an LSTM still remembers after four seconds.
    assert (windowed == whole).mean() >= 0.999


def test_identity_changes_with_weights_and_config(tmp_path: Path):
    path = _folder(tmp_path / "codec")
    before = codec_identity(str(path))
    assert before == codec_identity(str(path)) and len(before) == 16
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"note": 1}))
    assert codec_identity(str(path)) != before


def test_files_that_may_not_be_read_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = _folder(tmp_path / "codec")

    def forbidden(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    message = "config.json cannot be read: Permission denied; its owner can"
    for method in ("read_bytes", "is_file"):
        for read in (codec_identity, load_codec):
            with monkeypatch.context() as patch, pytest.raises(AttuneError, match=message):
                patch.setattr(Path, method, forbidden)
                read(str(path))


def _rename(folder: Path, change: Callable[[str], str | None]) -> None:
    weights = load_file(folder / "model.safetensors")
    renamed = {change(name): weight for name, weight in weights.items()}
    renamed.pop(None, None)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_are_missing_in_the_file_are_named(tmp_path: Path):
    path = _folder(tmp_path / "codec")
    lacking = "decoder.layers.0.conv.bias"
    _rename(path, lambda name: None if name == lacking else name)
    with pytest.raises(AttuneError, match=f"lacks 1 weights .{lacking}"):
        load_codec(str(path))


def test_older_names_and_absent_training_statistics_are_fine(folder: Path, tmp_path: Path):
    path = _folder(tmp_path / "codec")

    def old(name: str) -> str | None:
        if name.endswith(("cluster_size", "embed_avg", "inited")):
            return None
        stem, _, number = name.partition(".parametrizations.weight.original")
        return name if not number else f"{stem}.weight_{'gv'[int(number)]}"

    _rename(path, old)
    wav = torch.from_numpy(_noise(0.5))[None]
    assert torch.equal(load_codec(str(path)).encode(wav), load_codec(str(folder)).encode(wav))


def test_wrong_codecs_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = _folder(tmp_path / "codec")
    settings = json.loads((path / "config.json").read_text())
    for reference, name, content, message in (
        ("builtin:nothing", "", "", "no such built-in codec"),
        (tmp_path, "", "", "has no config.json"),
        (path, "model.safetensors", "torn", "cannot load weights"),
        (path, "config.json", json.dumps(settings | {"audio_channels": 2}), "only mono"),
        (path, "config.json", '{"model_type": "bert"}', "expected 'encodec'"),
        (path, "config.json", "[1]", "is not a JSON object"),
    ):
        if name:
            (path / name).write_text(content)
        with pytest.raises(AttuneError, match=message) as caught:
            load_codec(str(reference))
        assert "\n" not in str(caught.value)


def test_bfloat16_is_rounding_or_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """On some processors its products are noise for some widths: encoding must refuse it there."""
    wav = torch.from_numpy(_noise(1.0))[None]
    exact = load_codec(str(folder)).latents(wav)
    # Both outcomes are right: which one comes depends on the processor.
    try:
        found = load_codec(str(folder), precision="bfloat16").latents(wav)
    except AttuneError as error:
        assert "bfloat16 is wrong on this processor" in str(error)
    else:
        assert (found - exact).norm() < 0.15 * exact.norm()

    forward = FastEncoder.forward

    def noise(self: FastEncoder, wav: torch.Tensor) -> torch.Tensor:
        return torch.randn_like(forward(self, wav))

    monkeypatch.setattr(FastEncoder, "forward", noise)
    message = r"encoder of .* off, .*; set pipeline.precision=float32"
    with pytest.raises(AttuneError, match=message) as caught:
        load_codec(str(folder), precision="bfloat16")
    assert "\n" not in str(caught.value)


def test_the_shipped_codec_is_small_has_its_card_and_keeps_what_it_is_given():
    folder = codec_module.resolve_codec("builtin:sfx-small")
    assert (folder / "model.safetensors").stat().st_size <= 5_000_000
    card = (folder / "README.md").read_text()
    assert "python -m training codec" in card and "SI-SDR" in card and "perplexity" in card
    ours = load_codec("builtin:sfx-small")
    assert (ours.sample_rate, ours.frame_rate, ours.n_codebooks) == (16_000, 50, 4)
    # Knocks on a door: three loud moments stay three loud moments, and silence stays silent.
    wav = np.zeros(32_000, np.float32)
    t = np.arange(2_000) / 16_000
    for start in (4_000, 13_000, 22_000):
        wav[start : start + 2_000] = 0.5 * np.sin(2 * np.pi * 170 * t) * np.exp(-t / 0.03)
    codes = ours.encode_track(wav)
    decoded = ours.decode(torch.from_numpy(codes.astype(np.int64))[None])[0, :32_000].numpy()
    loudness = [np.sqrt(np.mean(block**2)) for block in np.split(decoded, 16)]
    original = [np.sqrt(np.mean(block**2)) for block in np.split(wav, 16)]
    assert np.corrcoef(loudness, original)[0, 1] > 0.9


def test_float32_on_gpus_is_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    exact_float32(torch.device("cpu"))
    assert torch.backends.cudnn.allow_tf32
    exact_float32(torch.device("cuda", 0))
    assert not torch.backends.cudnn.allow_tf32


def test_no_layer_waits_for_a_device_to_read_its_stride(folder: Path):
    """As tensors on the model's device, every convolution would read them from there."""
    codec = load_codec(str(folder))
    moved = [name for name, _ in codec.model.named_buffers() if "stride" in name or "pad" in name]
    assert not moved
    codec.model.to("meta")  # where nothing can be read
    decoded = codec.model.decoder(torch.zeros(1, 16, 5, device="meta"))
    assert decoded.shape == (1, 1, 5 * 320)
