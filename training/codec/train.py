"""Train EnCodec from scratch: `python -m training codec`.

Reads top to bottom: data, model, resume, loop, validation, the finished folder.  Every random
choice is a function of (seed, step), so a killed run goes on exactly where it stopped.  The
generator's loss is time + multi-scale mel + commitment; the adversarial terms join it in
`generator_loss`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from common.codec import codec_identity
from common.config import Recipe
from common.errors import AttuneError
from training.allocator import keep_freed_memory
from training.codec.config import CodecArchitecture, CodecTrainingConfig
from training.codec.data import AudioClips, load_clips, segment_batch
from training.codec.losses import MultiScaleMelLoss, si_sdr
from training.codec.quantizer import Quantized, ResidualQuantizerTrainer, codebook_usage

EXECUTION_ONLY = {"out", "threads", "log_every", "checkpoint_every"}
"""Keys that may change when a run goes on: they do not decide what is learnt."""


def build_model(architecture: CodecArchitecture, sample_rate: int) -> Any:
    """An untrained Hugging Face `EncodecModel`: non-causal, weight norm, mono, no chunking."""
    from transformers import EncodecConfig, EncodecModel

    frame_rate = sample_rate / math.prod(architecture.ratios)
    if not frame_rate.is_integer():
        raise AttuneError(
            f"codec_training.architecture.ratios {architecture.ratios}: {sample_rate} Hz is not a "
            f"multiple of their product {math.prod(architecture.ratios)}"
        )
    bits = math.log2(architecture.codebook_size)
    bandwidth = architecture.n_codebooks * bits * frame_rate / 1000
    config = EncodecConfig(
        # A hair above the exact value: its quotient by bits per stream is rounded down.
        target_bandwidths=[round(bandwidth + 1e-3, 6)],
        sampling_rate=sample_rate,
        audio_channels=1,
        normalize=False,
        chunk_length_s=None,
        num_filters=architecture.num_filters,
        hidden_size=architecture.hidden_size,
        codebook_dim=architecture.hidden_size,
        codebook_size=architecture.codebook_size,
        upsampling_ratios=list(architecture.ratios),
        num_lstm_layers=architecture.lstm_layers,
        use_causal_conv=False,
        norm_type="weight_norm",
    )
    model = EncodecModel(config)
    if model.quantizer.num_quantizers != architecture.n_codebooks:
        raise AttuneError(
            f"codec_training.architecture: {architecture.n_codebooks} x "
            f"{architecture.codebook_size} codes cannot be expressed as an EncodecModel"
        )
    initialize(model)
    return model


@torch.no_grad()
def initialize(model: Any) -> None:
    """He-initialize the convolutions, biases zero.

    PyTorch's default shrinks the signal at each of SEANet's layers: what reaches the latents varies
    a thousand times less than its mean, and a short training ends with one code per stream.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            weight = module.weight
            transposed = isinstance(module, nn.ConvTranspose1d)
            fan_in = (
                weight.shape[0 if transposed else 1]
                * weight.shape[2]
                / (module.stride[0] if transposed else 1)
            )
            # Through the weight-norm parametrization: assigning splits norm and direction.
            module.weight = torch.randn_like(weight) * math.sqrt(1.55 / fan_in)
            assert module.bias is not None
            module.bias.zero_()
    last = model.decoder.layers[-1].conv
    last.weight = last.weight * 0.05  # an untrained decoder whispers instead of clipping


@dataclass
class GeneratorTerms:
    """The generator's loss and its parts, all scalars before weighting but `total`."""

    total: Tensor
    parts: dict[str, float] = field(default_factory=dict)


def generator_loss(
    config: CodecTrainingConfig,
    mel_loss: MultiScaleMelLoss,
    estimate: Tensor,
    target: Tensor,
    quantized: Quantized | None,
) -> GeneratorTerms:
    """Weighted sum of the reconstruction terms (waveforms [B, S]) and the commitment loss.

    The adversarial and feature-matching terms of a discriminator belong here as well.
    """
    parts = {"time": F.l1_loss(estimate, target), "mel": mel_loss(estimate, target)}
    if quantized is not None:
        parts["commitment"] = quantized.commitment
    weights = config.losses
    total = torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()
    return GeneratorTerms(total, {name: float(value.detach()) for name, value in parts.items()})


def learning_rate(config: CodecTrainingConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    low = config.final_learning_rate
    return low + (config.learning_rate - low) * cosine


def train_codec(recipe: Recipe, config: CodecTrainingConfig, console: Console) -> Path:
    """Train, or go on training, the codec of a recipe.

    Returns:
        The folder of the finished codec: config.json, model.safetensors, README.md (model card).

    Raises:
        AttuneError: unusable audio, a folder that holds something else, or a run folder made with
            another configuration.
    """
    out = Path(config.out)
    run = out.with_name(out.name + ".run") if out.name else out
    settings = {
        "sample_rate": recipe.sample_rate,
        "seed": recipe.seed,
        **config.model_dump(exclude=EXECUTION_ONLY),
    }
    if _finished(out, run, settings):
        console.print(f"codec in {out} is finished; kept ({codec_identity(str(out))})")
        return out
    _check_free(out)
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)

    # 1. Data.
    segment = round(config.segment_s * recipe.sample_rate)
    clips = load_clips(config.audio, recipe.sample_rate, min_duration_s=0.1)
    held_out = load_clips(config.validation, recipe.sample_rate, min_duration_s=0.1)
    console.print(
        f"codec: {len(clips.waves)} clips ({clips.samples / recipe.sample_rate / 60:.1f} min), "
        f"{len(held_out.waves)} held out; refused {clips.refused or 'none'}"
    )

    # 2. Model and optimizer.
    torch.manual_seed(recipe.seed)
    model = build_model(config.architecture, recipe.sample_rate)
    quantizer = ResidualQuantizerTrainer(
        model.quantizer, config.codebook_decay, config.dead_code_threshold
    )
    mel_loss = MultiScaleMelLoss(recipe.sample_rate, config.mel_windows)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=config.betas)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    console.print(f"codec: {size:.2f} M parameters, {config.steps} steps -> {out}")

    # 3. Resume.
    run.mkdir(parents=True, exist_ok=True)
    _claim(run, settings)
    start = _load_checkpoint(run, model, optimizer)
    if start:
        console.print(f"codec: going on at step {start}")
    writer = SummaryWriter(str(run / "tb"), purge_step=start + 1)

    # 4. The loop.
    model.train()
    began, seconds_of_audio = time.monotonic(), 0.0
    for step in range(start, config.steps):
        target = segment_batch(clips, segment, config.batch_size, recipe.seed, step)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        latents = model.encoder(target[:, None])
        quantized = None
        if step >= config.quantize_from_step:
            if step == config.quantize_from_step:
                quantizer.start(latents.detach(), generator)
            quantized = quantizer(latents, generator)
        decoded = model.decoder(latents if quantized is None else quantized.latents)
        terms = generator_loss(config, mel_loss, decoded[:, 0, :segment], target, quantized)
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        if not torch.isfinite(norm):
            raise AttuneError(
                f"codec training: gradient is not finite at step {step + 1}; lower "
                "codec_training.learning_rate"
            )
        optimizer.step()
        seconds_of_audio += config.batch_size * config.segment_s

        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            speed = seconds_of_audio / (time.monotonic() - began)
            left = (config.steps - step - 1) * config.batch_size * config.segment_s / speed
            row: dict[str, Any] = {
                "step": step + 1,
                "loss": terms.total.item(),
                **terms.parts,
                "grad_norm": norm.item(),
                "lr": learning_rate(config, step),
                "audio_s_per_s": round(speed, 2),
            }
            if quantized is not None:
                used, perplexity = codebook_usage(
                    quantized.codes, config.architecture.codebook_size
                )
                row |= {"used": used, "perplexity": perplexity}
            _log(run, writer, row)
            usage = "/".join(f"{p:.0f}" for p in row.get("perplexity", [])) or "-"
            parts = " ".join(f"{name} {value:.4f}" for name, value in terms.parts.items())
            console.print(
                f"step {step + 1}/{config.steps} loss {row['loss']:.4f} {parts} "
                f"perplexity {usage} grad {row['grad_norm']:.2f} {speed:.1f}x real time "
                f"eta {left / 60:.0f} min",
                highlight=False,
                soft_wrap=True,
            )
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            _save_checkpoint(run, model, optimizer, step + 1)
    writer.close()

    # 5. Validation on whole clips, and the finished folder.
    model.eval()
    measured = validate(model, mel_loss, held_out, config.architecture.codebook_size)
    _save_codec(out, run, model, recipe, config, settings, clips, measured)
    console.print(f"codec: finished, {json.dumps(measured)}", highlight=False, soft_wrap=True)
    return out


@torch.inference_mode()
def validate(
    model: Any, mel_loss: MultiScaleMelLoss, clips: AudioClips, codebook_size: int
) -> dict[str, Any]:
    """Encode and decode whole clips one by one.

    Returns:
        Mean SI-SDR (dB), mel distance, L1, and usage and perplexity per stream over all frames.
    """
    scores, mels, times, codes = [], [], [], []
    for wave in clips.waves:
        target = torch.from_numpy(wave)[None]
        chosen = model.quantizer.encode(model.encoder(target[:, None]))
        estimate = model.decoder(model.quantizer.decode(chosen))[:, 0, : target.shape[-1]]
        scores.append(float(si_sdr(estimate, target)))
        mels.append(float(mel_loss(estimate, target)))
        times.append(float(F.l1_loss(estimate, target)))
        codes.append(chosen.flatten(1))
    used, perplexity = codebook_usage(torch.cat(codes, dim=1), codebook_size)
    n = len(scores)
    return {
        "clips": n,
        "si_sdr_db": round(sum(scores) / n, 3),
        "mel": round(sum(mels) / n, 4),
        "time": round(sum(times) / n, 5),
        "used": [round(value, 4) for value in used],
        "perplexity": [round(value, 1) for value in perplexity],
    }


# --- files of a run -------------------------------------------------------------------------------


def _finished(out: Path, run: Path, settings: dict[str, Any]) -> bool:
    if not (out / "model.safetensors").is_file():
        return False
    claimed = run / "config.json"
    if claimed.is_file() and _read_settings(claimed) == json.loads(json.dumps(settings)):
        return True
    raise AttuneError(
        f"codec_training.out {out} already holds a codec made with another configuration; "
        "name another folder or remove it"
    )


def _check_free(out: Path) -> None:
    """The finished folder is renamed to `out`: better to know now that this will succeed."""
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if not out.name or (os.path.lexists(out) and not empty):
        raise AttuneError(
            f"codec_training.out {out} exists and is not a codec; name another folder or remove it"
        )


def _read_settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise AttuneError(
            f"{path} is damaged; remove {path.parent} to train from the beginning"
        ) from error


def _claim(run: Path, settings: dict[str, Any]) -> None:
    """Write the run's configuration down, or check that it is still the same."""
    path = run / "config.json"
    wanted = json.loads(json.dumps(settings))
    if path.is_file():
        found = _read_settings(path)
        differs = sorted(k for k in wanted | found if wanted.get(k) != found.get(k))
        if differs:
            raise AttuneError(
                f"{run} was begun with another configuration ({', '.join(differs)} differ); name "
                "another codec_training.out or remove the folder"
            )
        return
    path.write_text(json.dumps(wanted, indent=2) + "\n")


def _save_checkpoint(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors["step"] = torch.tensor(step)
    partial = run / "checkpoint.safetensors.partial"
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(run / "checkpoint.safetensors")


def _load_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    path = run / "checkpoint.safetensors"
    if not path.is_file():
        return 0
    try:
        tensors = load_file(path)
        step = int(tensors.pop("step"))
    except (OSError, SafetensorError, KeyError) as error:
        raise AttuneError(
            f"{path} is damaged ({error}); remove it to train from the beginning"
        ) from error
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({"state": states, "param_groups": whole["param_groups"]})
    return step


def _log(run: Path, writer: SummaryWriter, row: dict[str, Any]) -> None:
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    for name, value in row.items():
        if isinstance(value, list):
            for stream, item in enumerate(value):
                writer.add_scalar(f"codec/{name}_{stream}", item, row["step"])
        elif name != "step":
            writer.add_scalar(f"codec/{name}", value, row["step"])


def _save_codec(
    out: Path,
    run: Path,
    model: Any,
    recipe: Recipe,
    config: CodecTrainingConfig,
    settings: dict[str, Any],
    clips: AudioClips,
    measured: dict[str, Any],
) -> None:
    """Write the finished folder; it appears whole or not at all."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed right here
    model.save_pretrained(partial)  # weight norm kept apart, as in the released EnCodec weights
    minutes = clips.samples / recipe.sample_rate / 60
    usage = "\n".join(
        f"| {k} | {used:.1%} | {perplexity:.1f} |"
        for k, (used, perplexity) in enumerate(
            zip(measured["used"], measured["perplexity"], strict=True)
        )
    )
    (partial / "README.md").write_text(
        f"# Codec of recipe `{recipe.name}`\n\n"
        f"An EnCodec ({recipe.sample_rate} Hz, {config.architecture.n_codebooks} x "
        f"{config.architecture.codebook_size} codes) in Hugging Face `EncodecModel` form, trained "
        f"from scratch.\n\n"
        f"- Command: `python -m training codec --config {recipe.source_file}`\n"
        f"- Finished: {date.today().isoformat()}, {config.steps} steps of {config.batch_size} x "
        f"{config.segment_s:g} s, {os.cpu_count()} CPU cores, torch {torch.__version__}\n"
        f"- Data: {len(clips.waves)} clips, {minutes:.1f} minutes; refused files: "
        f"{clips.refused or 'none'}\n"
        f"- Losses: time {config.losses.time:g}, multi-scale mel {config.losses.mel:g}, "
        f"commitment {config.losses.commitment:g}; no adversarial part\n\n"
        f"Measured on {measured['clips']} held-out clips, whole: SI-SDR "
        f"{measured['si_sdr_db']:.2f} dB, mel distance {measured['mel']:.4f}, L1 "
        f"{measured['time']:.5f}.\n\n"
        f"| stream | codes used | perplexity |\n|---|---|---|\n{usage}\n\n"
        f"## Settings\n\n```json\n{json.dumps(settings, indent=2)}\n```\n"
    )
    (run / "validation.json").write_text(json.dumps(measured, indent=2) + "\n")
    partial.rename(out)
