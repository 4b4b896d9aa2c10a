"""Clips of the newest checkpoint while a run trains, as wav files and in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from common.config import Recipe
from common.spectrogram import spectrogram
from training.sampling.config import SamplingConfig
from training.sampling.sampler import Sampler


def write_samples(
    recipe: Recipe, run: Path, prompts: Sequence[str], board: Any, step: int, device: torch.device
) -> list[Path]:
    """Generate a clip for each prompt with the averaged weights of the newest checkpoint.

    The seeds are the prompts' indices, so that clips of different steps can be compared.

    Args:
        board: a TensorBoard `SummaryWriter`.
        step: number of finished steps.

    Returns:
        The files `RUN/samples/step-NNNNNNNN/NN.wav`.
    """
    sampler = Sampler.load(recipe, run, device)
    seconds = sampler.trained_s
    sampling = recipe.section("sampling", SamplingConfig)
    waves, _ = sampler.generate(list(prompts), seconds, list(range(len(prompts))), sampling)
    folder = run / "samples" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    rate = sampler.codec.sample_rate
    paths = []
    for i, (prompt, wave) in enumerate(zip(prompts, waves, strict=True)):
        wave = np.clip(wave, -1.0, 1.0)
        path = folder / f"{i:02d}.wav"
        soundfile.write(path, wave, rate, subtype="PCM_16")
        board.add_audio(f"sample/{prompt}", wave, step, rate)
        picture = spectrogram(wave, rate)
        board.add_image(f"spectrogram/{prompt}", picture, step, dataformats="HW")
        paths.append(path)
    return paths
