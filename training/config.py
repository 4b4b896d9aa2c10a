"""The trainer's sections of a recipe: `lm` and `sampling`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
"""Named sizes; all but the first are MusicGen's, 300M is the paper's."""


class ModelConfig(Section):
    """Size of the decoder; streams, codes and text width come from the shards."""

    size: Size | None = None
    """A named size (`SIZES`); what is set beside it overrides it."""
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


Beta = Annotated[float, Field(gt=0, lt=1)]


class OptimConfig(Section):
    """AdamW and its schedule (paper, section 4.2)."""

    lr: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    """Peak learning rate; the paper does not state its own."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(default=0.1, ge=0)
    warmup: int = Field(default=4000, ge=0)
    """Steps of linear warm-up; a cosine down to 0 follows."""
    clip: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""


class GuidanceConfig(Section):
    """Training without text, for classifier-free guidance."""

    dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of training without text."""
    granularity: Literal["batch", "sample"] = "batch"
    """`batch`: one draw per step for the whole global batch; `sample`: one per clip."""


class RegularizationConfig(Section):
    """Representation regularization (paper, section 3.2)."""

    weight: float = Field(default=3.0, ge=0)
    """Lambda; 0 trains without it."""
    loss: Literal["similarity", "contrastive"] = "similarity"
    """`similarity`: L_rr (equation 5). `contrastive`: CLAP's loss in its place, between clips and
    prompts in a common space that is learnt; it did not improve the paper's model (section 2). For
    the ablation (`configs/ablation.yaml`)."""
    pool: Pool = "max"
    scope: Literal["global", "local"] = "global"
    """Pairs over the global batch, or within each process's share of it."""
    apply: Literal["cfg", "always"] = "cfg"
    """`cfg`: where text was dropped (equation 6). `always`: with text as well, by which the paper's
    metrics did not improve (section 3.2). For the ablation."""
    text: Literal["raw", "projected"] = "raw"
    """What the prompts' similarity is taken of: the text encoder's states, or these after the
    model's text projection. Fixed either way: no gradient flows into it. The paper leaves open
    which; for those who compare them."""


class SampleConfig(Section):
    """Clips generated while a run trains."""

    every: int = Field(default=0, ge=0)
    """Steps between them, a multiple of checkpoint_every: they are made from a checkpoint. 0: none.
    The first process makes them, the others wait. For those who want to hear a long run improve."""
    prompts: tuple[str, ...] = ("a dog barks", "rain on a roof", "a church bell rings")
    """Prompts of these clips; music wants others."""


class NonFiniteConfig(Section):
    """What to do when the loss or the gradient norm is not finite."""

    skip: int = Field(default=0, ge=0)
    """Such steps in a row that are skipped: weights, optimizer and average stay as they are, the
    log counts the step and names its samples. One more stops the run. In a row, because a rare bad
    clip may come back every epoch, while weights that have gone wrong never recover; 0 stops at the
    first. For long runs in bf16 over data that nobody has listened to."""


class LMConfig(Section):
    """How the language model is trained; the defaults are the paper's."""

    run: str = Field(default="lm", pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    """Folder of this training run, below `run_dir`."""
    model: ModelConfig = ModelConfig()
    init_from: str = ""
    """Start from the (averaged) weights of another run, of one of its checkpoints or of an imported
    model, instead of random ones: a folder. Optimizer, schedule and steps start at zero. A run that
    resumes does not read it. For fine-tuning (`import` writes it), and to train a finished run
    longer."""
    segment_s: float = Field(default=10.0, gt=0)
    """Longest clip in seconds; longer ones are cropped at random."""
    batch_size: int = Field(default=192, ge=1)
    """Clips per step, over all processes."""
    micro_batch: int = Field(default=0, ge=0)
    """Clips per process and forward pass; 0 takes a process's whole share at once. Smaller ones
    need less memory for the same step: gradients add up, and rr still compares all pairs of the
    global batch, for a second forward pass on the steps that it acts on. For GPUs that do not hold
    a process's share."""
    activation_checkpointing: bool = False
    """Keep only what goes into each block and run the block again on the way back: about a third
    more work for a fraction of the memory. For the larger sizes and long segments."""
    compile: bool = False
    """Compile the blocks with `torch.compile`. For long runs on GPUs, where kernels are fused. It
    takes a minute at the start, and on CPUs a C++ compiler."""
    sharding: Literal["full", "hybrid"] = "full"
    """`full`: weights, gradients, optimizer and average are spread over all processes. `hybrid`:
    over those of a node, with a copy per node; less traffic between nodes for more memory. For
    runs on several nodes."""
    deterministic: bool = False
    """Use only deterministic algorithms; slower on GPUs, where it needs
    CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment. For comparing two runs to the bit."""
    steps: int = Field(default=100_000, ge=1)
    optim: OptimConfig = OptimConfig()
    cfg: GuidanceConfig = GuidanceConfig()
    rr: RegularizationConfig = RegularizationConfig()
    stream_loss: Literal["mean", "sum"] = "mean"
    """Over the K streams: `mean` is the practice (AudioGen, MusicGen), `sum` is as in equation 1;
    with `sum` the same lambda weighs rr K times less against cross-entropy. Both take the mean over
    frames, as practice does, where equation 1 sums: 3 is meant for means. For those who take
    equation 1 at its word."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    datasets: dict[str, float] = Field(default_factory=dict)
    """How often a dataset's clips come per epoch; 1 for those not named, 0 leaves one out. For
    shards of several datasets of different size or quality."""
    precision: Literal["auto", "fp32", "medium", "bf16"] = "auto"
    """`bf16`: bf16 products, fp32 weights and optimizer. `fp32`: exact. `medium`: fp32 through
    PyTorch's fastest fp32 matmuls, 1.3 to 1.7 times faster on CPUs without AMX and as accurate
    there; bf16 inside on AMX, TF32 on GPUs. `auto`: `bf16` where the device has instructions for
    it, else `fp32`; a run keeps what it started with."""
    threads: int = Field(default=0, ge=0)
    """CPU threads per process; 0 shares the machine's cores between the processes on it (a single
    process takes `OMP_NUM_THREADS` if that is set)."""
    bad_samples: Literal["stop", "skip"] = "stop"
    """At a corrupt or missing shard or sample: stop with its name, or let another clip of the epoch
    take its place and count it. Which clip follows only from the place, so all processes make the
    same number of steps, and a run that resumes gets the same batches. `skip` is for long runs
    that nobody watches."""
    non_finite: NonFiniteConfig = NonFiniteConfig()
    log_every: int = Field(default=10, ge=1)
    valid_every: int = Field(default=0, ge=0)
    """Steps between validations with EMA weights; 0 for none."""
    checkpoint_every: int = Field(default=1000, ge=1)
    async_checkpoint: bool = False
    """Write checkpoints in the background, from a copy of everything in main memory; the next one
    waits for the one before. For large models on slow shared disks."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    samples: SampleConfig = SampleConfig()
    wandb: str = ""
    """Project at Weights & Biases that gets what TensorBoard gets; needs `pip install wandb`.
    For teams that watch their runs there."""
    keep_best: bool = False
    """Keep the checkpoint with the lowest `valid_loss` as well; `best` names it. For fine-tuning on
    few clips, which overfits."""

    @model_validator(mode="after")
    def _makes_sense(self) -> LMConfig:
        if self.batch_size < 2 and self.rr.weight > 0:
            raise ValueError(
                "batch_size must be at least 2 with rr.weight > 0: rr compares pairs of clips"
            )
        if self.rr.weight > 0 and self.rr.apply == "cfg" and self.cfg.dropout == 0:
            raise ValueError(
                "rr.weight > 0 with rr.apply=cfg acts on steps without text, and cfg.dropout is 0: "
                "there are none; set lm.rr.weight=0, or lm.rr.apply=always"
            )
        if self.rr.loss == "contrastive" and self.rr.text == "projected":
            raise ValueError(
                "rr.loss=contrastive maps the encoder's states by itself; set lm.rr.text=raw"
            )
        if self.optim.warmup >= self.steps:
            raise ValueError(
                f"optim.warmup ({self.optim.warmup}) must be shorter than lm.steps ({self.steps}); "
                f"add lm.optim.warmup={self.steps // 10}"
            )
        if self.samples.every % self.checkpoint_every:
            raise ValueError(
                f"samples.every ({self.samples.every}) must be a multiple of checkpoint_every "
                f"({self.checkpoint_every}): samples are made from checkpoints"
            )
        if self.keep_best and (not self.valid_every or self.checkpoint_every % self.valid_every):
            raise ValueError(
                f"keep_best: valid_every ({self.valid_every}) must divide checkpoint_every "
                f"({self.checkpoint_every}), so that every checkpoint has its valid_loss"
            )
        if any(weight < 0 for weight in self.datasets.values()):
            raise ValueError("datasets: weights must not be negative")
        return self
