"""The `codec_training` section of a recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from common.config import Section


class CodecArchitecture(Section):
    """SEANet and RVQ sizes (paper section 4.2: 64 filters, 4 x 2048 codes)."""

    num_filters: int = Field(default=64, ge=1)
    """Channels of the first layer; each strided layer doubles them."""
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    """Strides of the decoder; their product is the hop (samples per frame)."""
    hidden_size: int = Field(default=128, ge=1)
    """Latent channels, also the codebooks' dimension."""
    n_codebooks: int = Field(default=4, ge=1)
    codebook_size: int = Field(default=2048, ge=2, le=32767)


class DiscriminatorConfig(Section):
    """The multi-scale STFT discriminator (EnCodec, section 3.4)."""

    filters: int = Field(default=32, ge=1)
    """Channels of every layer."""
    windows: tuple[int, ...] = Field(default=(2048, 1024, 512, 256, 128), min_length=1)
    """STFT windows in samples; each has its own network."""
    start_step: int = Field(default=0, ge=0)
    """Steps before this one train the generator without adversarial terms."""


class CodecTrainingConfig(Section):
    """All settings of `python -m training codec`."""

    out: str
    """Folder of the finished codec; `OUT.run` has the run's checkpoints and logs."""
    audio: tuple[str, ...] = Field(min_length=1)
    """Folders (searched with their subfolders), patterns of files, or plans
    (`DATA_DIR/plan/plan.parquet`, of which the clips of split `train` are taken)."""
    validation: tuple[str, ...] = Field(min_length=1)
    """The same for whole clips that are never trained on; of plans, the clips of split `valid`."""
    reading: Literal["stream", "memory"] = "stream"
    """`stream` decodes each segment when it is drawn; `memory` decodes everything at the start,
    into every process (an hour at 16 kHz takes 230 MB)."""
    architecture: CodecArchitecture = CodecArchitecture()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    balancer_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the average of each term's gradient norm."""
    segment_s: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=64, ge=1)
    """Segments per step, over all processes."""
    steps: int = Field(ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate of codec and discriminator; a cosine down to 1% of it follows."""
    betas: tuple[float, float] = (0.5, 0.9)
    warmup_steps: int = Field(default=0, ge=0)
    quantize_from_step: int = Field(default=0, ge=0)
    """Steps before this one train a plain autoencoder; k-means then starts the codebooks on latents
    that already mean something. This keeps a short run from collapsing to a few codes."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Precision of encoder, decoder and discriminator; quantizer, STFTs, losses, weights and
    optimizers are fp32. `auto`: bf16 where the device has instructions for it; a run keeps the
    precision that it started with."""
    valid_every: int = Field(default=0, ge=0)
    """Steps between validations; 0 validates at the end only."""
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    threads: int = Field(default=0, ge=0)
    """CPU threads per process; 0 shares the machine's cores between its processes (a single process
    takes `OMP_NUM_THREADS` if it is set)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in ("quantize_from_step", "warmup_steps"):
            if getattr(self, key) >= self.steps:
                raise ValueError(
                    f"{key} ({getattr(self, key)}) must be smaller than codec_training.steps "
                    f"({self.steps})"
                )
        for window in self.discriminator.windows:
            if window < 16 or window % 4:
                raise ValueError(
                    f"discriminator.windows: STFT window {window}: expected a multiple of 4 from "
                    "16 on"
                )
        return self
