"""Codecs to and from Hugging Face: the same codes and waveforms, weight norm in every spelling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from released_codec import SMALL, assert_same_codec, make_codec, released_names
from safetensors.torch import load_file, save_file
from tiny_runs import MakesFolder, names_in, run_command
from torch.nn.utils import parametrize
from transformers import EncodecConfig, EncodecModel

from common.codec import codec_identity
from common.errors import AttuneError
from training.interop.codec import bandwidth, read_codec
from training.interop.sources import fetch
from training.interop.transfer import export, import_


@pytest.fixture(scope="module")
def theirs() -> Any:
    return make_codec(**SMALL)


def as_released(model: Any, folder: Path) -> None:
    """Save as Meta's files are."""
    folder.mkdir()
    weights = released_names(model.state_dict())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))


def as_folded(model: Any, folder: Path) -> None:
    """Save without weight norm, as others do who only run it."""
    model.save_pretrained(folder)
    model = EncodecModel.from_pretrained(folder)
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))


def as_pickle(model: Any, folder: Path) -> None:
    """Save as Meta's older files are, which have to be rewritten."""
    folder.mkdir()
    torch.save(released_names(model.state_dict()), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))


def as_shards(model: Any, folder: Path) -> None:
    """Save in several files with an index."""
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize("save", [as_released, as_folded, as_pickle, as_shards])
def test_every_spelling_comes_in_with_the_same_codes_and_waveforms(
    theirs: Any, tmp_path: Path, save: Any
) -> None:
    save(theirs, tmp_path / "theirs")
    facts = import_(str(tmp_path / "theirs"), tmp_path / "ours")
    assert facts["codec_id"] == codec_identity(str(tmp_path / "ours"))
    assert_same_codec(tmp_path / "ours", theirs)


def test_weight_norm_goes_both_ways_to_the_bit(theirs: Any, tmp_path: Path) -> None:
    as_released(theirs, tmp_path / "released")
    import_(str(tmp_path / "released"), tmp_path / "ours")
    export(str(tmp_path / "ours"), tmp_path / "exported")
    as_pickle(theirs, tmp_path / "pickle")
    import_(str(tmp_path / "pickle"), tmp_path / "rewritten")
    for folder in ("exported", "rewritten"):
        back: Any = EncodecModel.from_pretrained(tmp_path / folder)
        found = back.state_dict()
        assert found.keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            assert torch.equal(found[name], value), name


def test_a_folded_weight_comes_back_apart_and_multiplies_out_to_itself(
    theirs: Any, tmp_path: Path
) -> None:
    as_folded(theirs, tmp_path / "folded")
    weights = load_file(tmp_path / "folded" / "model.safetensors")
    silent = "encoder.layers.0.conv.weight"
    weights[silent][1] = 0.0  # a pruned channel has no direction
    save_file(weights, tmp_path / "folded" / "model.safetensors", metadata={"format": "pt"})
    apart = read_codec(tmp_path / "folded")
    modules = dict(apart.named_modules())
    found = 0
    for name, value in weights.items():
        if name.endswith(".conv.weight"):
            found += 1
            module = modules[name.removesuffix(".weight")]
            assert parametrize.is_parametrized(module, "weight")
            torch.testing.assert_close(module.weight, value, atol=1e-7, rtol=1e-6)
    assert found == 28


def test_the_whole_released_configuration(tmp_path: Path) -> None:
    model = make_codec()
    assert model.quantizer.num_quantizers == 4
    assert sum(p.numel() for p in model.parameters()) > 50e6
    as_released(model, tmp_path / "released")
    import_(str(tmp_path / "released"), tmp_path / "ours")
    assert_same_codec(tmp_path / "ours", model, 0.2)


def test_files_that_are_read_as_they_are_keep_their_identity(theirs: Any, tmp_path: Path) -> None:
    as_released(theirs, tmp_path / "released")
    facts = import_(str(tmp_path / "released"), tmp_path / "ours")
    assert facts["codec_id"] == codec_identity(str(tmp_path / "released"))
    exported = export(str(tmp_path / "ours"), tmp_path / "exported")
    assert exported["codec_id"] == facts["codec_id"]
    # A folded one had to be rewritten: it is another codec by name.
    as_folded(theirs, tmp_path / "folded")
    other = import_(str(tmp_path / "folded"), tmp_path / "other")
    assert other["codec_id"] != codec_identity(str(tmp_path / "folded"))


def test_the_codec_that_ships_is_exported_and_loads_over_there(tmp_path: Path) -> None:
    from transformers import AutoFeatureExtractor

    result = run_command("export", "builtin:sfx-small", "--to", tmp_path / "out", "--json")
    facts = json.loads(result.stdout)
    assert facts["codec_id"] == codec_identity("builtin:sfx-small")
    assert_same_codec(tmp_path / "out", EncodecModel.from_pretrained(tmp_path / "out").eval())
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert extractor.sampling_rate == 16000
    assert "Codec of recipe" in (tmp_path / "out" / "README.md").read_text()
    # Again over itself, but never over anything else.
    export("builtin:sfx-small", tmp_path / "out")
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(AttuneError, match=r"notes\.txt is not of it"):
        export("builtin:sfx-small", tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").is_file()
    assert codec_identity(str(tmp_path / "out")) == facts["codec_id"]


def test_a_hub_id_is_fetched_without_other_files(
    theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_pickle(theirs, tmp_path / "hub")
    asked: list[tuple[str, tuple[str, ...]]] = []

    def snapshot(repo: str, allow_patterns: list[str]) -> str:
        asked.append((repo, tuple(allow_patterns)))
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    import_("facebook/encodec_32khz", tmp_path / "ours")
    assert {repo for repo, _ in asked} == {"facebook/encodec_32khz"}
    # Small files first, then safetensors, and pickles only because there were no safetensors.
    assert [len(patterns) for _, patterns in asked] == [3, 4, 4]
    last = [patterns[-1] for _, patterns in asked[1:]]
    assert last == ["model*.safetensors", "pytorch_model*.bin"]
    assert_same_codec(tmp_path / "ours", theirs)


def test_tensors_only_for_codebook_training_may_be_missing(theirs: Any, tmp_path: Path) -> None:
    as_released(theirs, tmp_path / "released")
    weights = load_file(tmp_path / "released" / "model.safetensors")
    unread = ("inited", "cluster_size", "embed_avg")
    kept = {name: value for name, value in weights.items() if not name.endswith(unread)}
    assert len(kept) == len(weights) - 12
    save_file(kept, tmp_path / "released" / "model.safetensors", metadata={"format": "pt"})
    model = read_codec(tmp_path / "released")
    for layer in model.quantizer.layers:
        book = layer.codebook
        assert torch.equal(book.embed_avg / book.cluster_size[:, None], book.embed)


def test_bandwidths_count_their_streams() -> None:
    for streams in (1, 3, 4, 8, 12):
        for size in (16, 64, 256, 1024, 2048):
            for ratios, rate in (([8, 5, 4, 2], 16000), ([8, 5, 4, 4], 32000)):
                config = EncodecConfig(
                    sampling_rate=rate,
                    upsampling_ratios=ratios,
                    codebook_size=size,
                    target_bandwidths=[bandwidth(streams, size, 50)],
                )
                assert config.num_quantizers == streams
    assert bandwidth(4, 2048, 50) == 2.2  # as in the released configuration


def test_mistakes_are_reported_in_one_line_and_leave_nothing(theirs: Any, tmp_path: Path) -> None:
    good = tmp_path / "good"
    as_released(theirs, good)

    def changed(name: str, settings: dict[str, Any], drop: str = "", cut: str = "") -> str:
        folder = tmp_path / name
        shutil.copytree(good, folder)
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
        weights = load_file(folder / "model.safetensors")
        weights = {k: v[:1] if k == cut else v for k, v in weights.items() if k != drop}
        save_file({k: v.clone() for k, v in weights.items()}, folder / "model.safetensors")
        return str(folder)

    cases = [
        (str(tmp_path / "nowhere"), "no such file or folder, and not a hub id"),
        (changed("melody", {"model_type": "musicgen_melody"}), "model_type 'musicgen_melody'"),
        (changed("lacks", {}, drop="encoder.layers.0.conv.bias"), r"lacks 1 weights.*layers\.0"),
        (changed("more", {"use_conv_shortcut": True}), "lacks 24 weights"),
        (changed("stray", {"num_residual_layers": 1, "target_bandwidths": [0.9]}), "has unknown 4"),
        (changed("cut", {}, cut="decoder.layers.0.conv.bias"), r"is \(1,\), its configuration"),
        (changed("stereo", {"normalize": True}), "only mono codecs without input normalization"),
    ]
    broken = tmp_path / "broken"
    shutil.copytree(good, broken)
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    cases.append((str(broken), "cannot be read"))
    outside = tmp_path / "outside"
    shutil.copytree(good, outside)
    (outside / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (outside / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}})
    )
    cases.append((str(outside), "names '../elsewhere.safetensors', which is no file beside it"))
    before = names_in(tmp_path)
    for source, words in cases:
        with pytest.raises(AttuneError, match=words):
            import_(source, tmp_path / "out")
    with pytest.raises(AttuneError, match="is not empty"):
        import_(str(good), broken)
    with pytest.raises(AttuneError, match="below a file"):
        import_(str(good), good / "config.json" / "deep")
    with pytest.raises(AttuneError, match="no trained model there"):
        export(str(tmp_path), tmp_path / "out")
    with pytest.raises(AttuneError, match="--only lm: expected codec"):
        run_command("import", good, "--to", tmp_path / "out", "--only", "lm")
    assert names_in(tmp_path) == before


def test_a_pickle_that_would_run_code_is_refused(theirs: Any, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    as_pickle(theirs, folder)
    torch.save({"encoder": MakesFolder(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(AttuneError, match="reading anything else can run code"):
        import_(str(folder), tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_local_names_are_never_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    for name in ("./codec", "/codec/x", "runs/demo/codec", "codec", "~/codec"):
        with pytest.raises(AttuneError, match="no such file or folder"):
            fetch(name)
