"""The `codec_training` section of a recipe."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from common.config import Section


class CodecArchitecture(Section):
    """SEANet and RVQ sizes (paper section 4.2: 64 filters, 4 x 2048 codes)."""

    num_filters: int = Field(default=64, ge=1)
    """Channels of the first layer; doubled at each of the strided layers."""
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    """Decoder strides; their product is the hop (samples per frame)."""
    hidden_size: int = Field(default=128, ge=1)
    """Latent channels, also the codebooks' dimension."""
    lstm_layers: int = Field(default=2, ge=1)
    n_codebooks: int = Field(default=4, ge=1)
    codebook_size: int = Field(default=2048, ge=2, le=32767)


class CodecLossWeights(Section):
    """Weight of each term of the generator's loss."""

    time: float = Field(default=0.1, ge=0)
    """L1 between waveforms."""
    mel: float = Field(default=2.0, ge=0)
    """Multi-scale mel distance."""
    mel_squared: float = Field(default=0.5, ge=0)
    """Inside the mel distance, the share of the squared log-mel error beside the absolute one."""
    commitment: float = Field(default=1.0, ge=0)
    """Pulls the encoder's latents to their codes."""


class CodecTrainingConfig(Section):
    """Everything `python -m training codec` needs."""

    out: str
    """Folder of the finished codec; the run's checkpoints and logs lie in `OUT.run`."""
    audio: tuple[str, ...]
    """Folders searched for audio files, with everything below them, or patterns of files."""
    validation: tuple[str, ...]
    """Folders of whole clips that are never trained on."""
    architecture: CodecArchitecture = CodecArchitecture()
    losses: CodecLossWeights = CodecLossWeights()
    mel_windows: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    """STFT windows of the mel loss, samples."""
    segment_s: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=64, ge=1)
    steps: int = Field(ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    betas: tuple[float, float] = (0.5, 0.9)
    warmup_steps: int = Field(default=0, ge=0)
    final_learning_rate: float = Field(default=0.0, ge=0)
    """The cosine schedule's end."""
    clip_norm: float = Field(default=10.0, gt=0)
    quantize_from_step: int = Field(default=0, ge=0)
    """Steps before this one train a plain autoencoder; k-means then starts the codebooks on latents
    that already mean something, which is what keeps a short run from collapsing to a few codes."""
    codebook_decay: float = Field(default=0.99, gt=0, lt=1)
    dead_code_threshold: float = Field(default=0.1, ge=0)
    """A code whose moving average of uses per step falls below this is re-seeded."""
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves PyTorch's default."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.quantize_from_step >= self.steps:
            raise ValueError("quantize_from_step must be smaller than steps")
        if self.warmup_steps >= self.steps:
            raise ValueError("warmup_steps must be smaller than steps")
        return self
