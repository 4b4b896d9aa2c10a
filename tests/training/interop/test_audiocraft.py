"""audiocraft's checkpoints: against modules that compute what its own do, under its own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from omegaconf import OmegaConf
from random_run import make_t5
from released_codec import RELEASED, SMALL, assert_same_codec, make_codec
from tiny_runs import run_command
from torch import Tensor, nn
from transformers import AutoTokenizer, EncodecModel, T5EncoderModel

from common.codec import codec_identity, load_codec
from common.config import load_recipe
from common.errors import AttuneError
from training.checkpoint.load import load_for_inference
from training.interop.audiocraft import read_checkpoint
from training.interop.transfer import import_
from training.lm.patterns import delay
from training.run.folder import latest_checkpoint
from training.sampling.config import SamplingConfig
from training.sampling.sampler import Sampler

CODEC_YAML = """
sample_rate: 32000
channels: 1
compression_model: encodec
encodec:
  {autoencoder: seanet, quantizer: rvq, sample_rate: '${sample_rate}', channels: '${channels}',
   causal: false, renormalize: false}
seanet:
  {dimension: 128, channels: '${channels}', causal: '${encodec.causal}', n_filters: 64,
   n_residual_layers: 1, ratios: [8, 5, 4, 4], activation: ELU, activation_params: {alpha: 1.0},
   norm: weight_norm, norm_params: {}, kernel_size: 7, residual_kernel_size: 3,
   last_kernel_size: 7, dilation_base: 2, pad_mode: reflect, true_skip: true, compress: 2, lstm: 2,
   disable_norm_outer_blocks: 0, encoder: {},
   decoder: {trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}}
rvq: {n_q: 4, q_dropout: false, bins: 2048, decay: 0.99, kmeans_init: true}
slurm: {partition: '${oc.env:NOT_SET_ANYWHERE}'}
"""
LM_YAML = """
solver: musicgen
sample_rate: 32000
compression_model_checkpoint: //pretrained/facebook/encodec_32khz
lm_model: transformer_lm
dataset: {segment_duration: 30, batch_size: 192}
transformer_lm:
  {dim: 32, num_heads: 4, num_layers: 2, hidden_scale: 4, n_q: 4, card: 64, dropout: 0.0,
   activation: gelu, norm_first: true, bias_ff: false, bias_attn: false, bias_proj: false,
   past_context: null, causal: true, custom: false, memory_efficient: true, layer_scale: null,
   positional_embedding: sin, norm: layer_norm, qk_layer_norm: false, kv_repeat: 1}
codebooks_pattern:
  {modeling: delay, delay: {delays: [0, 1, 2, 3], flatten_first: 0, empty_initial: 0}}
classifier_free_guidance: {training_dropout: 0.3, inference_coef: 3.5}
fuser: {cross_attention_pos_emb: false, sum: [], prepend: [], cross: [description],
        input_interpolate: []}
conditioners:
  description: {model: t5, t5: {name: t5-base, finetune: false, normalize_text: false}}
"""


def codec_yaml(**sizes: Any) -> str:
    """The released configuration as text, with references in it; sizes of `seanet` and `rvq`."""
    tree = yaml.safe_load(CODEC_YAML)
    for key, value in sizes.items():
        section = "rvq" if key in tree["rvq"] else "seanet"
        tree[section][key] = value
    return yaml.safe_dump(tree)


def audiocraft_names(model: Any) -> dict[str, Tensor]:
    """An `EncodecModel`'s weights as audiocraft's modules name them, `weight_g` and all."""
    state: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        there = name.replace("coder.layers.", "coder.model.")
        if kind in ("EncodecConv1d", "EncodecConvTranspose1d"):
            inner = "conv.conv" if kind == "EncodecConv1d" else "convtr.convtr"
            weight = module.conv.parametrizations.weight
            state[f"{there}.{inner}.weight_g"] = weight.original0.detach()
            state[f"{there}.{inner}.weight_v"] = weight.original1.detach()
            state[f"{there}.{inner}.bias"] = module.conv.bias.detach()
        elif kind == "EncodecLSTM":
            state |= {f"{there}.lstm.{k}": v for k, v in module.lstm.state_dict().items()}
    for i, layer in enumerate(model.quantizer.layers):
        book = layer.codebook
        for part in ("inited", "cluster_size", "embed", "embed_avg"):
            state[f"quantizer.vq.layers.{i}._codebook.{part}"] = getattr(book, part)
    assert len(state) == len(model.state_dict())
    return state


def save_codec(folder: Path, model: Any, text: Any) -> Path:
    """`compression_state_dict.bin` as audiocraft's export writes it."""
    folder.mkdir(exist_ok=True)
    package = {"best_state": audiocraft_names(model), "xp.cfg": text, "version": "1.4.0a2"}
    torch.save(package | {"exported": True}, folder / "compression_state_dict.bin")
    return folder / "compression_state_dict.bin"


class Attention(nn.Module):
    """`StreamingMultiheadAttention` without biases."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.heads = heads

    def forward(self, x: Tensor, source: Tensor, causal: bool) -> Tensor:
        parts = zip((x, source, source), self.in_proj_weight.chunk(3), strict=True)
        q, k, v = (F.linear(y, w).unflatten(-1, (self.heads, -1)).transpose(1, 2) for y, w in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """`StreamingTransformerLayer`, pre-norm, with cross-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.linear1 = nn.Linear(dim, 4 * dim, bias=False)
        self.linear2 = nn.Linear(4 * dim, dim, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.cross_attention = Attention(dim, heads)
        self.norm_cross = nn.LayerNorm(dim)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, True)
        x = x + self.cross_attention(self.norm_cross(x), text, False)
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class AudiocraftLM(nn.Module):
    """`LMModel` behind its T5 condition; with its `create_sin_embedding`."""

    def __init__(self, text_dim: int = 24, dim: int = 32, card: int = 64) -> None:
        super().__init__()
        self.condition_provider = nn.Module()
        self.condition_provider.conditioners = nn.ModuleDict({"description": nn.Module()})
        projection = nn.Linear(text_dim, dim)
        self.condition_provider.conditioners["description"].output_proj = projection
        self.emb = nn.ModuleList(nn.Embedding(card + 1, dim) for _ in range(4))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(Layer(dim, 4) for _ in range(2))
        self.out_norm = nn.LayerNorm(dim)
        self.linears = nn.ModuleList(nn.Linear(dim, card, bias=False) for _ in range(4))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, codes: Tensor, states: Tensor) -> Tensor:
        """Logits `[B, K, S, card]` of delayed codes `[B, K, S]`, text states of one length."""
        x = sum(emb(codes[:, k]) for k, emb in enumerate(self.emb))
        half = x.shape[-1] // 2
        positions = torch.arange(x.shape[1])[:, None]
        phase = positions / (10000 ** (torch.arange(half) / (half - 1)))
        x = x + torch.cat([phase.cos(), phase.sin()], dim=-1)
        text = self.condition_provider.conditioners["description"].output_proj(states)
        for layer in self.transformer.layers:
            x = layer(x, text)
        return torch.stack([linear(self.out_norm(x)) for linear in self.linears], dim=1)


def lm_yaml(path: Path, **edit: Any) -> str:
    """The configuration with a text encoder that is to be had, edited by dotted keys."""
    config = OmegaConf.create(yaml.safe_load(LM_YAML))
    OmegaConf.update(config, "conditioners.description.t5.name", str(path))
    for key, value in edit.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return OmegaConf.to_yaml(config)


@pytest.fixture(scope="module")
def small() -> Any:
    return make_codec(**SMALL)


SMALL_YAML = codec_yaml(n_filters=4, dimension=16, bins=64)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, small: Any) -> tuple[Path, AudiocraftLM]:
    """A folder as the released ones, half-precision weights in it, and its language model."""
    folder = tmp_path_factory.mktemp("audiocraft")
    save_codec(folder, small, SMALL_YAML)
    make_t5(folder / "t5")
    lm = AudiocraftLM().eval()
    halves = {name: value.half() for name, value in lm.state_dict().items()}
    lm.load_state_dict(halves)
    torch.save(
        {"best_state": halves, "xp.cfg": lm_yaml(folder / "t5"), "exported": True},
        folder / "state_dict.bin",
    )
    return folder, lm


def test_a_codec_gives_the_same_codes_and_waveforms(small: Any, tmp_path: Path) -> None:
    file = save_codec(tmp_path / "theirs", small, SMALL_YAML)
    facts = import_(str(file), tmp_path / "ours")
    ours = str(tmp_path / "ours")
    assert facts == {"kind": "codec", "codec_id": codec_identity(ours), "to": ours}
    assert_same_codec(tmp_path / "ours", small)
    # To the bit; and but for its sizes the configuration is the released one.
    back: Any = EncodecModel.from_pretrained(tmp_path / "ours")
    settings = back.config.to_dict()
    expected = RELEASED | SMALL
    assert {key: settings[key] for key in expected} == expected
    for name, value in small.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_encodecs_own_modules_give_the_same_codes_and_waveforms(tmp_path: Path) -> None:
    """The package that audiocraft's modules come from, where it is installed (extra `bench`)."""
    modules = pytest.importorskip("encodec.modules")
    quantization = pytest.importorskip("encodec.quantization")
    torch.manual_seed(0)
    sizes = {"dimension": 16, "n_filters": 4, "ratios": [8, 5, 4, 4], "true_skip": True}
    encoder, decoder = modules.SEANetEncoder(**sizes), modules.SEANetDecoder(**sizes)
    quantizer = quantization.ResidualVectorQuantizer(dimension=16, n_q=4, bins=64)
    wav = torch.randn(2, 1, 16000) * torch.linspace(0, 1, 16000)
    with torch.no_grad():
        encoder.train(), quantizer.train()
        quantizer(encoder(wav), 50)  # k-means on latents
        encoder.eval(), decoder.eval(), quantizer.eval()
        latents = encoder(wav)
        codes = quantizer.encode(latents, 50)
        expected = decoder(quantizer.decode(codes))[:, 0]
    state = {}
    for part, module in (("encoder", encoder), ("decoder", decoder), ("quantizer", quantizer)):
        state |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
    torch.save({"best_state": {"model": state}, "xp.cfg": SMALL_YAML}, tmp_path / "codec.th")
    import_(str(tmp_path / "codec.th"), tmp_path / "ours")
    ours = load_codec(str(tmp_path / "ours"))
    found = ours.encode(wav[:, 0])
    assert len(found.unique()) > 10
    assert torch.equal(found, codes.transpose(0, 1))
    torch.testing.assert_close(ours.decode(found), expected, atol=1e-5, rtol=1e-4)


def test_a_language_model_gives_the_same_logits_and_greedy_codes(
    released: tuple[Path, AudiocraftLM], tmp_path: Path
) -> None:
    folder, lm = released
    facts = import_(str(folder), tmp_path / "ours")
    assert (facts["prompt_policy"], facts["longest_s"]) == ("plain", 30)
    recipe = load_recipe(tmp_path / "ours" / "recipe.yaml")
    assert recipe.sampling["cfg"] == 3.5
    sampler = Sampler.load(recipe, tmp_path / "ours" / "imported")
    prompt = "loud rain roof"
    tokens = AutoTokenizer.from_pretrained(folder / "t5")(prompt, return_tensors="pt")
    encoder = T5EncoderModel.from_pretrained(folder / "t5").eval()
    codes = torch.randint(0, 64, (2, 4, 11), generator=torch.Generator().manual_seed(2))
    inputs, _ = delay(codes, torch.full((2,), 11), 64)
    with torch.inference_mode():
        states = encoder(**tokens).last_hidden_state
        both = states.expand(2, -1, -1)
        expected = lm(inputs, both)
        found, _ = sampler.model(inputs, both, torch.ones(both.shape[:2], dtype=torch.bool))
        torch.testing.assert_close(found.transpose(1, 2), expected, atol=2e-4, rtol=1e-4)
        # Without text audiocraft attends to one zero.
        null = torch.zeros(2, 1, 24)
        projection = lm.condition_provider.conditioners["description"].output_proj
        bias = projection.bias.clone()
        projection.bias.zero_()
        untold = lm(inputs, null)
        projection.bias.copy_(bias)
        ours, _ = sampler.model(inputs)
        torch.testing.assert_close(ours.transpose(1, 2), untold, atol=2e-4, rtol=1e-4)
    assert (expected - untold).abs().mean() > 0.05
    # Greedily, step by step over whole sequences of theirs.
    greedy = SamplingConfig(temperature=0.0, cfg=1.0, weights="fp32")
    _, made = sampler.generate([prompt], 0.2, [0], greedy)
    sequence = torch.full((1, 4, 1), 64)
    with torch.inference_mode():
        for step in range(13):
            best = lm(sequence, states)[:, :, -1].argmax(-1)
            inside = torch.tensor([0 <= step - k < 10 for k in range(4)])
            sequence = torch.cat([sequence, torch.where(inside, best, 64)[:, :, None]], dim=2)
    theirs = torch.stack([sequence[0, k, 1 + k : 11 + k] for k in range(4)])
    assert torch.equal(theirs, torch.from_numpy(made[0].astype("int64")))


def test_the_command_takes_a_file_and_the_files_beside_it(
    released: tuple[Path, AudiocraftLM], tmp_path: Path
) -> None:
    folder, _ = released
    run_command("import", folder / "state_dict.bin", "--to", tmp_path / "ours")
    command = ["generate", "--config", tmp_path / "ours" / "recipe.yaml", "--prompt", "bell"]
    run_command(*command, "--duration", 0.1, "--out", tmp_path / "x")
    import_(str(folder), tmp_path / "codec", "codec")
    assert codec_identity(str(tmp_path / "codec")) == codec_identity(str(tmp_path / "ours/codec"))


def test_audiogens_normalized_text_and_named_codecs_are_kept(
    released: tuple[Path, AudiocraftLM], tmp_path: Path
) -> None:
    folder, _ = released
    import_(str(folder), tmp_path / "codec", "codec")
    weights = torch.load(folder / "state_dict.bin", weights_only=True)["best_state"]
    other = tmp_path / "other"
    other.mkdir()
    text = lm_yaml(folder / "t5", conditioners__description__t5__normalize_text=True)
    torch.save({"best_state": weights, "xp.cfg": text}, other / "state_dict.bin")
    # Where the codec is only named (here it would be the hub's), one at hand can be used.
    named = {"pretrained": str(tmp_path / "codec"), "exported": True}
    torch.save(named, other / "compression_state_dict.bin")
    facts = import_(str(other), tmp_path / "ours")
    assert facts["prompt_policy"] == "lemmas"
    recipe = load_recipe(tmp_path / "ours" / "recipe.yaml")
    assert recipe.codec.path == str(tmp_path / "codec")
    assert recipe.text_encoder.path == str(folder / "t5")
    Sampler.load(recipe, tmp_path / "ours" / "imported")
    (other / "compression_state_dict.bin").unlink()
    import_(str(other), tmp_path / "given", codec=str(tmp_path / "codec"))
    found = latest_checkpoint(tmp_path / "given" / "imported")
    assert found is not None
    assert load_for_inference(found)[1]["codec_id"] == facts["codec_id"]


def test_configurations_as_objects_are_not_loaded(small: Any, tmp_path: Path) -> None:
    """The whole training checkpoint holds one: a message says what to do."""
    config = OmegaConf.create(yaml.safe_load(SMALL_YAML))
    with pytest.raises(AttuneError, match=r"can run code.*audiocraft\.utils\.export"):
        import_(str(save_codec(tmp_path / "theirs", small, config)), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    # A plain dictionary is data.
    plain = OmegaConf.to_container(config)
    import_(str(save_codec(tmp_path / "theirs", small, plain)), tmp_path / "ours")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"norm": "time_group_norm"}, "seanet.norm is 'time_group_norm'; only 'weight_norm'"),
        ({"activation": "ReLU"}, "seanet.activation is 'ReLU'"),
        ({"disable_norm_outer_blocks": 2}, "disable_norm_outer_blocks is 2"),
        ({"decoder": {"final_activation": "Tanh"}}, "final_activation is 'Tanh'"),
        ({"encoder": {"n_filters": 8}}, "seanet.encoder is {'n_filters': 8}"),
        ({"n_filters": "${nothing}"}, "seanet.n_filters: Interpolation key 'nothing'"),
        ({"lstm": 0}, "seanet.lstm is 0, expected a number"),
        ({"n_filters": 8}, "its configuration makes it"),
        ({"n_q": 3}, "has unknown 4 weights"),
        ({"true_skip": False}, "lacks 24 weights"),
    ],
)
def test_codecs_that_are_not_encodecs_are_refused(
    small: Any, tmp_path: Path, sizes: dict[str, Any], words: str
) -> None:
    text = codec_yaml(**({"n_filters": 4, "dimension": 16, "bins": 64} | sizes))
    file = save_codec(tmp_path / "theirs", small, text)
    with pytest.raises(AttuneError) as refused:
        import_(str(file), tmp_path / "ours")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"lm_model": "unet"}, "lm_model is 'unet'"),
        ({"transformer_lm__norm_first": False}, "norm_first is False"),
        ({"transformer_lm__positional_embedding": "rope"}, "positional_embedding is 'rope'"),
        ({"transformer_lm__num_layers": 3}, "lacks 16 weights"),
        ({"transformer_lm__card": 32}, "its configuration makes it"),
        ({"codebooks_pattern__modeling": "parallel"}, "pattern 'parallel'"),
        ({"codebooks_pattern__delay__delays": [0, 0, 0, 0]}, "'delay' [0, 0, 0, 0]"),
        ({"interleave_stereo_codebooks": {"use": True}}, "interleave_stereo_codebooks.use is True"),
        ({"fuser__prepend": ["self_wav"]}, "fuser.prepend is ['self_wav']"),
        ({"conditioners__description__model": "clap"}, "description.model is 'clap'"),
    ],
)
def test_language_models_that_are_not_musicgens_are_refused(
    released: tuple[Path, AudiocraftLM], tmp_path: Path, edit: dict[str, Any], words: str
) -> None:
    folder, lm = released
    text = lm_yaml(folder / "t5", **edit)
    torch.save({"best_state": lm.state_dict(), "xp.cfg": text}, tmp_path / "state_dict.bin")
    with pytest.raises(AttuneError) as refused:
        import_(str(tmp_path), tmp_path / "ours")
    assert words in str(refused.value)
    assert not (tmp_path / "ours").exists()


def test_missing_parts_are_named(released: tuple[Path, AudiocraftLM], tmp_path: Path) -> None:
    folder, lm = released
    file = tmp_path / "state_dict.bin"
    state, text = lm.state_dict(), lm_yaml(folder / "t5")

    def refused(words: str, package: Any, **options: str) -> None:
        torch.save(package, file)
        with pytest.raises(AttuneError, match=words):
            import_(str(file), tmp_path / "ours", **options)

    refused("holds a list", [1])
    refused("no best_state of named tensors", {"xp.cfg": text})
    refused("has no xp.cfg", {"best_state": state})
    refused("xp.cfg is not YAML", {"best_state": state, "xp.cfg": "a: [b"})
    named = lm_yaml(folder / "t5", compression_model_checkpoint="/checkpoint/of/somebody")
    refused("there is no compression_state_dict.bin", {"best_state": state, "xp.cfg": named})
    refused("melody|no projection", {
        "best_state": {k: v for k, v in state.items() if "output_proj" not in k}, "xp.cfg": text
    })  # fmt: skip
    more = {"transformer.layers.0.linear1.bias": torch.zeros(128)}
    refused("has unknown 1 weights", {"best_state": state | more, "xp.cfg": text})
    narrow = make_t5(tmp_path / "narrow", 16)
    refused(
        r"is 16 wide.*with one of 24; name it with --text-encoder",
        {"best_state": state, "xp.cfg": text},
        text_encoder=str(narrow),
    )
    file.write_bytes(b"not a zip")
    with pytest.raises(AttuneError, match=r"not a checkpoint of tensors|cannot be read"):
        read_checkpoint(file)
    with pytest.raises(AttuneError, match=r"has no compression_state_dict\.bin"):
        import_(str(tmp_path), tmp_path / "ours", "codec")
