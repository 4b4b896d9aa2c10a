"""Every backbone end to end on small random weights; front ends against their formulas."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_backbones import write_clap, write_passt, write_vggish

from common.codec import load_codec
from training.evaluation.metrics.backbones import passt, vggish
from training.evaluation.metrics.backbones.backbone import MissingBackbone, identity
from training.evaluation.metrics.backbones.clap import Clap
from training.evaluation.metrics.backbones.latents import CodecLatents, MelStatistics
from training.evaluation.metrics.backbones.passt import PaSST
from training.evaluation.metrics.backbones.vggish import FRAMINGS, VGGish


def _noise(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * rate))).astype(np.float32)


def test_vggish_front_end_is_the_published_formula():
    wave = _noise(0.1, 16_000)
    found = vggish.log_mel(wave)
    assert found.shape == (1 + (1600 - 400) // 160, 64)
    # Frame 3, from the definition: periodic Hann, 512-point magnitudes, triangles even in HTK mel.
    piece = wave[480:880] * np.array([math.sin(math.pi * n / 400) ** 2 for n in range(400)])
    bins = [abs(sum(piece * np.exp(-2j * np.pi * k * np.arange(400) / 512))) for k in range(257)]

    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    step = (mel(7500) - mel(125)) / 65
    for band in (0, 1, 17, 63):
        centre = mel(125) + (band + 1) * step
        total = sum(
            size * max(0.0, 1 - abs(mel(31.25 * k) - centre) / step) for k, size in enumerate(bins)
        )
        assert found[3, band] == pytest.approx(math.log(total + 0.01), rel=1e-9)
    assert vggish.log_mel(np.zeros(400, np.float32)) == pytest.approx(math.log(0.01))


def test_examples_are_cut_as_their_framing_says():
    ten = _noise(10, 16_000)
    half, google = FRAMINGS["half"], FRAMINGS["google"]
    mel = vggish.log_mel(ten)
    cut = vggish.examples(ten, half)
    # 998 frames hold 1 + (998 - 96) // 48 examples; Google takes every whole second, 0.5 s apart.
    assert cut.shape == (19, 96, 64)
    np.testing.assert_allclose(cut[2], mel[96:192], rtol=1e-5, atol=1e-6)
    scaled = vggish.examples(ten, google)
    assert scaled.shape == (19, 96, 64)
    loud = vggish.log_mel(ten / ten.max())
    np.testing.assert_allclose(scaled[3], loud[150:246], rtol=1e-5, atol=1e-6)
    assert len(vggish.examples(ten[:-400], half)) == 19
    assert len(vggish.examples(ten[:-1], google)) == 18
    short = vggish.examples(ten[:5000], half)
    assert short.shape == (1, 96, 64) and short[0, -1] == pytest.approx(math.log(0.01))


@pytest.mark.parametrize("peak", [0.5, 0.03, 0.001, 1 / 32768])
def test_googles_framing_scales_every_clip_to_its_highest_sample(peak: float):
    """As its tool does on a file's 16-bit samples: `samples /= max(0.1, amax(samples))`."""
    noise = _noise(3, 16_000)
    noise[100] = -1.5 * np.abs(noise).max()  # the largest magnitude, which `amax` is not
    whole = np.round(noise / noise.max() * peak * 32768)
    found = vggish.examples((whole / 32768).astype(np.float32), FRAMINGS["google"])
    scaled = whole / max(0.1, whole.max())
    expected = [vggish.log_mel(scaled[i : i + 16_000])[:96] for i in range(0, 32_001, 8_000)]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, -0.25])
def test_a_clip_without_a_sample_above_zero_stays_finite(level: float):
    wave = np.full(16_000, level, np.float32)
    assert np.isfinite(vggish.examples(wave, FRAMINGS["google"])).all()


def test_vggish_runs_its_layers_and_ends_without_relu(tmp_path: Path):
    state = write_vggish(tmp_path / "vggish-10086976.pth")
    found = VGGish(tmp_path / "vggish-10086976.pth").embed(wave := _noise(2.5, 16_000))
    x = torch.from_numpy(vggish.examples(wave, FRAMINGS["half"]))[:, None]
    for place in (0, 3, 6, 8, 11, 13):
        weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
        x = torch.conv2d(x, weight, bias, padding=1).relu()
        if place not in (6, 11):
            x = torch.max_pool2d(x, 2)
    x = torch.stack([x[:, :, t, f] for t in range(6) for f in range(4)], 1).flatten(1)
    for place in (0, 2, 4):
        x = x @ state[f"embeddings.{place}.weight"].T + state[f"embeddings.{place}.bias"]
        x = x.relu() if place < 4 else x
    np.testing.assert_allclose(found, x.numpy(), rtol=1e-4, atol=1e-5)
    assert found.min() < 0 < found.max()


def test_passt_gives_a_distribution_per_window(tmp_path: Path):
    write_passt(tmp_path / "ten.pt")
    model = PaSST(tmp_path / "ten.pt")
    wave = _noise(21, 32_000)
    found = model.embed(wave)
    assert found.shape == (3, 527)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    # A window by itself is the window in the clip; what is left after 20 s and 0.1 s is nothing.
    np.testing.assert_array_equal(model.embed(wave[320_000:640_000])[0], found[1])
    assert len(model.embed(wave[: 640_000 + 3_200])) == 2
    assert model.embed(wave[:10]).shape == (1, 527)
    write_passt(tmp_path / "twenty.pt", columns=200)
    assert PaSST(tmp_path / "twenty.pt", 20).embed(wave).shape == (2, 527)
    with pytest.raises(MissingBackbone, match="another window"):
        PaSST(tmp_path / "ten.pt", 20)


def test_passt_front_end_is_its_formula():
    t = np.arange(32_000) / 32_000
    wave = torch.from_numpy(np.sin(2 * np.pi * 1000 * t).astype(np.float32))
    mel = passt.log_mel(wave)
    assert mel.shape == (128, 100)
    # The band of 1 kHz on Kaldi's mel scale, 128 bands between 0 and 15 kHz.
    top = 1127 * math.log(1 + 15_000 / 700)
    band = 1127 * math.log(1 + 1000 / 700) / (top / 129) - 1
    assert abs(int(mel[:, 50].argmax()) - band) <= 1
    assert passt.log_mel(torch.zeros(32_000)) == pytest.approx((math.log(1e-5) + 4.5) / 5)


def test_passt_equals_hear21passt(tmp_path: Path):
    reference = pytest.importorskip("hear21passt.models.passt")
    state = write_passt(tmp_path / "ten.pt")
    net = reference.PaSST(
        img_size=(128, 998), stride=10, embed_dim=128, depth=2, num_heads=2, mlp_ratio=0.5,
        distilled=True,
    )  # fmt: skip
    net.load_state_dict(state)
    wave = torch.from_numpy(_noise(4, 32_000))
    logits, _ = net.eval()(passt.log_mel(wave)[None, None])
    found = PaSST(tmp_path / "ten.pt").embed(wave.numpy())
    np.testing.assert_allclose(found, logits.softmax(-1).detach().numpy(), rtol=1e-4)


def test_clap_draws_nothing_and_pads_nothing_into_texts(tmp_path: Path):
    write_clap(tmp_path / "clap")
    model = Clap(tmp_path / "clap")
    assert model.sample_rate == 48_000
    wave = _noise(20.5, 48_000)
    np.random.seed(0)
    found = model.embed(wave)
    np.random.seed(1)
    assert found.shape == (2, 8)  # the last half second is left out
    np.testing.assert_array_equal(model.embed(wave), found)
    np.testing.assert_allclose(model.embed(wave[480_000:960_000])[0], found[1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    assert model.embed(wave[:4800]).shape == (1, 8)
    texts = model.embed_texts(["dog", "a very long text about rain on a roof"])
    np.testing.assert_array_equal(model.embed_texts(["dog"])[0], texts[0])
    assert abs(texts[0] @ texts[1]) < 0.9999


def test_backbones_without_download(tiny_codec: Path):
    codec = load_codec(str(tiny_codec))
    latents = CodecLatents(codec)
    wave = _noise(1.5, latents.sample_rate)
    found = latents.embed(wave)
    assert found.shape == (75, 16)
    codes = codec.model.quantizer.encode(torch.from_numpy(found.T.copy())[None])
    torch.testing.assert_close(codes.transpose(0, 1), codec.encode(torch.from_numpy(wave)[None]))
    mel = MelStatistics()
    assert mel.embed(wave).shape == (2, 144)
    assert mel.embed(wave[:100]).shape == (1, 144)
    low, high = mel.embed(wave)[0], mel.embed(10 * wave)[0]
    np.testing.assert_allclose((high - low)[:24], 2, atol=0.01)  # 20 dB in log10 of power


def test_weights_that_are_not_there_or_not_theirs_say_so_in_one_line(tmp_path: Path):
    for load in (VGGish, PaSST, Clap):
        with pytest.raises(MissingBackbone, match="make weights") as caught:
            load(tmp_path / "nothing")
        assert "\n" not in str(caught.value)
    page = tmp_path / "page.pth"
    page.write_text("<html>404</html>")
    with pytest.raises(MissingBackbone, match="not a file of weights"):
        VGGish(page)
    write_passt(tmp_path / "passt.pt")
    with pytest.raises(MissingBackbone, match="is not VGGish"):
        VGGish(tmp_path / "passt.pt")
    state = write_vggish(tmp_path / "vggish.pth")
    with pytest.raises(MissingBackbone, match="is not PaSST"):
        PaSST(tmp_path / "vggish.pth")
    state.pop("embeddings.4.bias")
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(MissingBackbone, match="does not fit"):
        VGGish(tmp_path / "cut.pth")
    torch.save({"run": print}, tmp_path / "code.pth")  # a reference to code: never loaded
    with pytest.raises(MissingBackbone, match="not a file of weights"):
        VGGish(tmp_path / "code.pth")


def test_identity_follows_weights_and_settings(tmp_path: Path):
    write_vggish(tmp_path / "a.pth")
    write_vggish(tmp_path / "b.pth", dim=8)
    a, b = VGGish(tmp_path / "a.pth"), VGGish(tmp_path / "b.pth")
    google = VGGish(tmp_path / "a.pth", "google")
    assert len({identity(a), identity(b), identity(google)}) == 3
    assert identity(a) == identity(VGGish(tmp_path / "a.pth"))
    write_clap(tmp_path / "clap")
    before = identity(Clap(tmp_path / "clap"))
    assert before == identity(Clap(tmp_path / "clap"))
    path = tmp_path / "clap" / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"repeatpad"', '"pad"'))
    assert before != identity(Clap(tmp_path / "clap"))
    # The scale of a clip changes its embeddings, so it is part of the cache's key.
    assert google.facts["least_peak"] == vggish.LEAST_PEAK and "least_peak" not in a.facts
