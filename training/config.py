"""The trainer's sections of a recipe: `lm` and `sampling`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from common.config import Section
from training.lm.attention import Backend
from training.lm.losses import Pool

Size = Literal["60M", "300M", "1.5B", "3.3B"]
SIZES: dict[str, dict[str, int]] = {
    "60M": {"d_model": 512, "n_layers": 16, "n_heads": 8},
    "300M": {"d_model": 1024, "n_layers": 24, "n_heads": 16},
    "1.5B": {"d_model": 1536, "n_layers": 48, "n_heads": 24},
    "3.3B": {"d_model": 2048, "n_layers": 48, "n_heads": 32},
}
"""Named sizes; 300M is the paper's. All but the first are MusicGen's."""


class ModelConfig(Section):
    """Size of the decoder; streams, codes and text width come from the shards."""

    size: Size | None = None
    """A named size (`SIZES`); the keys below override it."""
    d_model: int = Field(default=1024, ge=8, multiple_of=2)
    n_layers: int = Field(default=24, ge=1)
    n_heads: int = Field(default=16, ge=1)
    attention: Backend = "auto"
    """Attention kernel (`lm/attention.py`). `auto` chooses by device. `xformers` is for comparisons
    with the paper, which used it; the others are for devices where `auto` is slow or wrong."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_size(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("size") not in SIZES:
            return values
        return SIZES[values["size"]] | values

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must divide d_model ({self.d_model})")
        return self


class OptimConfig(Section):
    """AdamW and its schedule (paper, section 4.2); beta1 and beta2 are 0.9 and 0.95."""

    lr: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    """Peak learning rate; the paper does not state its own."""
    weight_decay: float = Field(default=0.1, ge=0)
    warmup: int = Field(default=4000, ge=0)
    """Steps of linear warm-up; a cosine down to 0 follows."""
    clip: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""


class GuidanceConfig(Section):
    """Training without text on some steps, for classifier-free guidance."""

    dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of training without text."""
    granularity: Literal["batch", "sample"] = "batch"
    """`batch`: one draw per step for the whole global batch; `sample`: one per clip."""


class RegularizationConfig(Section):
    """Representation regularization (paper, section 3.2)."""

    weight: float = Field(default=3.0, ge=0)
    """Lambda; 0 trains without the regularization."""
    loss: Literal["similarity", "contrastive"] = "similarity"
    """`similarity`: L_rr (equation 5). `contrastive`: instead CLAP's loss between clips and prompts
    in a learned common space; it did not improve the paper's model (section 2). For the ablation
    (`configs/ablation.yaml`)."""
    pool: Pool = "max"
    scope: Literal["global", "local"] = "global"
    """Pairs over the global batch, or only within each process's share of it."""
    apply: Literal["cfg", "always"] = "cfg"
    """`cfg`: on clips whose text was dropped (equation 6). `always`: also on clips with text; this
    did not improve the paper's metrics (section 3.2). For the ablation."""
    text: Literal["raw", "projected"] = "raw"
    """States that the prompts' similarity is computed from: the text encoder's, or these after the
    model's text projection. No gradient flows into them. The paper does not say which it uses; for
    comparing the two."""


class LMConfig(Section):
    """Training of the language model; the defaults are the paper's."""

    run: str = Field(default="lm", pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    """Folder of this training run, below `run_dir`."""
    model: ModelConfig = ModelConfig()
    init_from: str = ""
    """Folder of another run, of one of its checkpoints or of an imported model: start from its
    averaged weights instead of random ones. Optimizer, schedule and steps start at zero. A run that
    resumes does not read it. For fine-tuning (`import` writes this key), and to train a finished
    run longer."""
    segment_s: float = Field(default=10.0, gt=0)
    """Longest clip in seconds; longer clips are cropped at random."""
    batch_size: int = Field(default=192, ge=1)
    """Clips per step, over all processes."""
    micro_batch: int = Field(default=0, ge=0)
    """Clips per process and forward pass; 0 takes a process's whole share at once. Smaller values
    need less memory for the same step: gradients add up, and rr still compares all pairs of the
    global batch, at the price of a second forward pass on steps with rr. For GPUs that cannot hold
    a process's share."""
    activation_checkpointing: bool = False
    """Keep only the input of each block, and run the block again in the backward pass: about a
    third more work for a fraction of the memory. For the larger sizes and long segments."""
    compile: bool = False
    """Compile the blocks with `torch.compile`. For long runs on GPUs, where it fuses kernels. It
    takes a minute at the start, and needs a C++ compiler on CPUs."""
    sharding: Literal["full", "hybrid"] = "full"
    """`full`: weights, gradients, optimizer and average are sharded over all processes. `hybrid`:
    over the processes of a node, with a copy per node: less traffic between nodes, more memory. For
    runs on several nodes."""
    steps: int = Field(default=100_000, ge=1)
    optim: OptimConfig = OptimConfig()
    cfg: GuidanceConfig = GuidanceConfig()
    rr: RegularizationConfig = RegularizationConfig()
    stream_loss: Literal["mean", "sum"] = "mean"
    """Cross-entropy over the K streams: `mean` as AudioGen and MusicGen do, or `sum` as in equation
    1, where the same lambda weighs rr K times less. Both take the mean over frames, where equation
    1 sums: lambda 3 is meant for means. `sum` is for following equation 1 literally."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    datasets: dict[str, float] = Field(default_factory=dict)
    """How often a dataset's clips come per epoch: 1 for datasets not named, 0 leaves a dataset out.
    For shards of several datasets of different size or quality."""
    precision: Literal["auto", "fp32", "medium", "bf16"] = "auto"
    """`bf16`: bf16 products, fp32 weights and optimizer. `fp32`: exact. `medium`: PyTorch's fastest
    fp32 matmuls, 1.3 to 1.7 times faster on CPUs without AMX and as accurate there (with AMX they
    use bf16, on GPUs TF32). `auto`: `bf16` where the device has instructions for it, else `fp32`; a
    run keeps the precision that it started with."""
    threads: int = Field(default=0, ge=0)
    """CPU threads per process; 0 shares the machine's cores between its processes (a single process
    takes `OMP_NUM_THREADS` if it is set). For several runs side by side on a machine."""
    bad_samples: Literal["stop", "skip"] = "stop"
    """At a corrupt or missing shard or sample: stop and name it, or replace it by another clip of
    the epoch and count it. The place decides which clip, so all processes make the same number of
    steps, and a resumed run gets the same batches. `skip` is for long runs that nobody watches."""
    skip_non_finite: int = Field(default=0, ge=0)
    """How many steps in a row may have a loss or gradient norm that is not finite. Such steps leave
    weights, optimizer and average unchanged; the log counts them and names their samples. One more
    stops the run: a rare bad clip may come back every epoch, but broken weights never recover. For
    long runs in bf16 over data that nobody has listened to."""
    log_every: int = Field(default=10, ge=1)
    valid_every: int = Field(default=0, ge=0)
    """Steps between validations with EMA weights; 0 for none. The checkpoint with the lowest
    `valid_loss` is kept beside the newest ones, and `best` names it."""
    checkpoint_every: int = Field(default=1000, ge=1)
    async_checkpoint: bool = False
    """Write checkpoints in the background, from a copy in main memory; a checkpoint waits for the
    one before. For large models on slow shared disks."""
    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints kept."""
    samples: tuple[str, ...] = ()
    """Prompts of clips generated from every checkpoint. The first process makes them, the others
    wait. For hearing how a long run improves."""
    wandb: str = ""
    """Project at Weights & Biases that also gets what TensorBoard gets; needs `pip install wandb`.
    For teams that watch their runs there."""

    @model_validator(mode="after")
    def _makes_sense(self) -> LMConfig:
        if self.batch_size < 2 and self.rr.weight > 0:
            raise ValueError(
                "batch_size must be at least 2 with rr.weight > 0: rr compares pairs of clips"
            )
        if self.rr.weight > 0 and self.rr.apply == "cfg" and self.cfg.dropout == 0:
            raise ValueError(
                "rr.weight > 0 with rr.apply=cfg acts on steps without text, but with "
                "cfg.dropout=0 there are none; set lm.rr.weight=0, or lm.rr.apply=always"
            )
        if self.rr.loss == "contrastive" and self.rr.text == "projected":
            raise ValueError(
                "rr.loss=contrastive has its own map of the text states; set lm.rr.text=raw"
            )
        if self.optim.warmup >= self.steps:
            raise ValueError(
                f"optim.warmup ({self.optim.warmup}) must be shorter than lm.steps ({self.steps}); "
                f"add lm.optim.warmup={self.steps // 10}"
            )
        if any(weight < 0 for weight in self.datasets.values()):
            raise ValueError("datasets: weights must not be negative")
        return self
