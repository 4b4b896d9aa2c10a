"""State of a run (language model or codec), read from its folder only: while it trains, after a
kill, and at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import AttuneError
from training.run.log import format_clock, read_log

_WINDOW = 50
"""Logged steps that a loss is averaged over, because single steps scatter."""
CODEC_LOSSES = ("time", "mel", "adversarial", "feature", "commitment", "discriminator")
"""Losses of a codec, by their names in the log."""


def read_status(run: Path, codec: Path | None = None, now: float | None = None) -> dict[str, Any]:
    """State of a run.

    Args:
        run: the run's folder.
        codec: folder of the finished codec if it is a codec's run; None for a language model's.
        now: seconds since the epoch, for tests.

    Returns:
        run, state (`finished`, `training`, `stopped` or `empty`), step, steps, share, checkpoint,
        eta_s, last_line_s (seconds since the log grew), and the keys of `_lm_facts` or
        `_codec_facts`.

    Raises:
        AttuneError: the folder has no run.
    """
    finished = codec is not None and (codec / "model.safetensors").is_file()
    try:
        config = json.loads((run / "config.json").read_text())
        if "imported" in config:
            raise AttuneError(f"{run}: holds an imported model, which was not trained here")
        steps = int(config["codec_training" if codec else "lm"]["steps"])
    except (FileNotFoundError, NotADirectoryError):
        runs = sorted(path.parent.name for path in run.parent.glob("*/config.json"))
        there = f"; there are {', '.join(runs)}" if runs and not codec else ""
        there += f"; {codec} holds a finished codec" if finished else ""
        raise AttuneError(f"{run}: no run there (no config.json){there}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise AttuneError(f"{run / 'config.json'}: is damaged: {error!r}") from error
    log = run / "log.jsonl"
    rows = read_log(run) if log.is_file() else []
    trained = [row for row in rows if "loss" in row]
    step, latest = trained[-1]["step"] if trained else 0, run / "latest"
    checkpoint = latest.read_text().strip() if latest.is_file() else None
    found: dict[str, Any] = {"run": str(run), "state": "empty", "step": step, "steps": steps}
    found |= {"share": step / steps, "checkpoint": checkpoint, "eta_s": None, "last_line_s": None}
    found |= {"codec": str(codec)} | _codec_facts(rows) if codec else _lm_facts(rows)
    if rows:
        age = max(0.0, (time.time() if now is None else now) - log.stat().st_mtime)
        pace = _seconds_per_step(trained)
        found["last_line_s"] = round(age, 1)
        logged = [row["step"] for row in trained[-_WINDOW:]]
        stride = (logged[-1] - logged[0]) / (len(logged) - 1) if len(logged) > 1 else 1.0
        # Twenty times the usual time between lines leaves room for validation and checkpoints.
        quiet = max(120.0, 20 * (pace or 0.0) * stride)
        found["state"] = "training" if age < quiet else "stopped"
        if pace and step < steps:
            found["eta_s"] = round(pace * (steps - step), 1)
    if step >= steps and (finished if codec else checkpoint == f"step-{steps:08d}"):
        found |= {"state": "finished", "eta_s": None}
    return found


def _lm_facts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """loss and loss_without_text (means of the last logged steps of each kind), and the `names`
    below, each from the last row that has it."""
    trained = [row for row in rows if "loss" in row]
    names = (
        "loss_per_stream", "rr", "rr_correlation", "grad_norm", "lr", "tokens_per_s", "mfu",
        "loader_wait", "memory_gib", "valid_loss", "valid_loss_uncond",
    )  # fmt: skip
    return {
        "loss": _mean([row["loss"] for row in trained if row["dropped"] == 0]),
        "loss_without_text": _mean([row["loss"] for row in trained if row["dropped"] == 1]),
    } | {name: _last(rows, name).get(name) for name in names}


def _codec_facts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """losses (`loss` and each loss unweighted), used and perplexity (per stream) of the last rows
    that have them; validation (step and figures of the last validation) or None."""
    last, quantized, valid = (_last(rows, name) for name in ("loss", "used", "valid_mel"))
    return {
        "losses": {name: last[name] for name in ("loss", *CODEC_LOSSES) if name in last},
        "used": quantized.get("used"),
        "perplexity": quantized.get("perplexity"),
        "validation": {k.removeprefix("valid_"): v for k, v in valid.items()} or None,
    }


def status_lines(found: dict[str, Any]) -> list[str]:
    """The result of `read_status` as text."""
    eta, last = found["eta_s"], found["last_line_s"]
    return [
        f"{found.get('codec', found['run'])}: {found['state']}",
        f"step      {found['step']}/{found['steps']} ({found['share']:.1%})"
        + (f"  eta {format_clock(eta)}" if eta is not None else ""),
        *(_codec_lines(found) if "codec" in found else _lm_lines(found)),
        f"saved     {found['checkpoint'] or 'nothing yet'}",
        *([f"last line {format_clock(last)} ago"] if last is not None else []),
    ]


def _lm_lines(found: dict[str, Any]) -> list[str]:
    def number(name: str, form: str) -> str:
        return "-" if found[name] is None else format(found[name], form)

    streams = " ".join(f"{loss:.3f}" for loss in found["loss_per_stream"] or [])
    return [
        f"loss      {number('loss', '.4f')} with text, {number('loss_without_text', '.4f')} without"
        f" (last {_WINDOW} logged)" + (f"  streams {streams}" if streams else ""),
        f"rr        {number('rr', '.4f')}  correlation {number('rr_correlation', '.3f')}",
        f"valid     {number('valid_loss', '.4f')} with text, "
        f"{number('valid_loss_uncond', '.4f')} without (averaged weights)",
        f"speed     {number('tokens_per_s', '.0f')} tokens/s  MFU {number('mfu', '.1%')}  "
        f"waiting for data {number('loader_wait', '.1%')}  memory "
        f"{number('memory_gib', '.2f')} GiB",
    ]


def _codec_lines(found: dict[str, Any]) -> list[str]:
    losses = "  ".join(f"{name} {value:.4f}" for name, value in found["losses"].items())
    valid, usage = "-", "-"
    if figures := found["validation"]:
        valid = (
            f"SI-SDR {figures['si_sdr_db']:.2f} dB  mel {figures['mel']:.4f}  L1 "
            f"{figures['time']:.5f}  of {figures['clips']} clips at step {figures['step']}"
        )
    if found["used"]:
        streams = zip(found["used"], found["perplexity"], strict=True)
        usage = "  ".join(f"{used:.1%} ({perplexity:.1f})" for used, perplexity in streams)
        usage += " used (perplexity), by stream"
    return [f"losses    {losses or '-'}", f"codes     {usage}", f"valid     {valid}"]


def write_curves(runs: list[Path], out: Path) -> None:
    """Draw losses, L_rr, correlation and gradient norm of each run over its steps into one PNG.

    Raises:
        AttuneError: a run has no log, or the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("loss, with text", lambda row: row.get("loss") if row.get("dropped") == 0 else None),
        ("loss, without text", lambda row: row.get("loss") if row.get("dropped") == 1 else None),
        ("validation loss, with text", lambda row: row.get("valid_loss")),
        ("L_rr", lambda row: row.get("rr")),
        ("correlation of similarities", lambda row: row.get("rr_correlation")),
        ("gradient norm", lambda row: row.get("grad_norm")),
    )
    figure, axes = pyplot.subplots(2, 3, figsize=(14, 7), layout="constrained")
    for run in runs:
        if not (run / "log.jsonl").is_file():
            raise AttuneError(f"{run}: no log.jsonl there, so no curves")
        rows = read_log(run)
        for axis, (title, value) in zip(axes.flat, panels, strict=True):
            points = [(row["step"], v) for row in rows if (v := value(row)) is not None]
            axis.set(title=title, xlabel="step")
            axis.grid(alpha=0.3)
            if points:
                x, y = zip(*points, strict=True)
                (line,) = axis.plot(x, y, alpha=0.25, linewidth=0.8)
                axis.plot(x, _smooth(y), color=line.get_color(), label=run.name)
    for axis in axes.flat:
        if not axis.lines:
            axis.text(0.5, 0.5, "not logged", ha="center", transform=axis.transAxes)
            axis.set(xticks=[], yticks=[])
    axes.flat[0].legend()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:
        raise AttuneError(f"{out}: cannot be written: {error}") from error
    finally:
        pyplot.close(figure)


def _smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """Running mean over about a twentieth of the curve, shorter at its ends."""
    count, reach = len(values), max(1, len(values) // 40)
    sums, places = np.cumsum([0.0, *values]), np.arange(count)
    low, high = np.maximum(0, places - reach), np.minimum(count, places + reach + 1)
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _last(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The last row that has `name`, or an empty one."""
    return next((row for row in reversed(rows) if name in row), {})


def _mean(values: list[float]) -> float | None:
    last = values[-_WINDOW:]
    return sum(last) / len(last) if last else None


def _seconds_per_step(trained: list[dict[str, Any]]) -> float | None:
    """Seconds per step over the last rows, including validation and saving."""
    timed = [(row["step"], row["elapsed_s"]) for row in trained[-_WINDOW:] if "elapsed_s" in row]
    # The clock starts at 0 when a run resumes: only rows after the last such place count.
    starts = [i for i in range(1, len(timed)) if timed[i][1] < timed[i - 1][1]]
    timed = timed[starts[-1] :] if starts else timed
    if len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        return None
    return float(timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])
