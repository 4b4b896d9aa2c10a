"""Where a run stands, the language model's or the codec's, from its folder only: while it trains,
after a kill, and at the end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from common.errors import AttuneError
from training.run.log import format_clock, read_log

_WINDOW = 50
"""Logged steps that a loss is averaged over: single steps scatter."""
CODEC_LOSSES = ("time", "mel", "adversarial", "feature", "commitment", "discriminator")
"""Losses of a codec, as its log names them."""


def read_status(run: Path, codec: Path | None = None, now: float | None = None) -> dict[str, Any]:
    """Where a run stands.

    Args:
        run: the run's folder.
        codec: folder of the finished codec, of a codec's run; None for a language model's.
        now: seconds since the epoch, for tests.

    Returns:
        run, state (`finished`, `training`, `stopped` or `empty`), step, steps, share, checkpoint,
        eta_s, last_line_s (seconds since the log grew), and what `_lm_facts` or `_codec_facts`
        return.

    Raises:
        AttuneError: there is no run in that folder.
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
    step, checkpoint = trained[-1]["step"] if trained else 0, _text(run / "latest")
    found: dict[str, Any] = {"run": str(run), "state": "empty", "step": step, "steps": steps}
    found |= {"share": step / steps, "checkpoint": checkpoint, "eta_s": None, "last_line_s": None}
    found |= {"codec": str(codec)} | _codec_facts(rows) if codec else _lm_facts(rows)
    if rows:
        age = max(0.0, (time.time() if now is None else now) - log.stat().st_mtime)
        pace = _seconds_per_step(trained)
        found["last_line_s"] = round(age, 1)
        # A line comes every few steps; validation and checkpoints come in between.
        quiet = max(120.0, 20 * (pace or 0.0) * _stride(trained))
        found["state"] = "training" if age < quiet else "stopped"
        if pace and step < steps:
            found["eta_s"] = round(pace * (steps - step), 1)
    if step >= steps and (finished if codec else checkpoint == f"step-{steps:08d}"):
        found |= {"state": "finished", "eta_s": None}
    return found


def _lm_facts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """loss and loss_without_text (means of the last logged steps of each kind), and of the last row
    that has them loss_per_stream, rr, rr_correlation, grad_norm, lr, tokens_per_s, mfu,
    loader_wait, memory_gib, valid_loss, valid_loss_uncond."""
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
    """losses (`loss` and each one unweighted), used and perplexity (per stream) of the last rows
    that have them; validation (figures of the last one, and its step), or None."""
    last, quantized, valid = (_last(rows, name) for name in ("loss", "used", "valid_mel"))
    return {
        "losses": {name: last[name] for name in ("loss", *CODEC_LOSSES) if name in last},
        "used": quantized.get("used"),
        "perplexity": quantized.get("perplexity"),
        "validation": {k.removeprefix("valid_"): v for k, v in valid.items()} or None,
    }


def status_lines(found: dict[str, Any]) -> list[str]:
    """`read_status` for a person."""
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

    return [
        f"loss      {number('loss', '.4f')} with text, {number('loss_without_text', '.4f')} without"
        f" (last {_WINDOW} logged)" + _streams(found["loss_per_stream"]),
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
    """One PNG: loss with and without text, L_rr, correlation, gradient norm and validation loss of
    each run over its steps.

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


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Running mean over about a twentieth of the curve, shorter at its ends."""
    reach = max(1, len(values) // 40)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    smooth = []
    for i in range(len(values)):
        low, high = max(0, i - reach), min(len(values), i + reach + 1)
        smooth.append((sums[high] - sums[low]) / (high - low))
    return smooth


def _streams(losses: list[float] | None) -> str:
    return "" if losses is None else f"  streams {' '.join(f'{loss:.3f}' for loss in losses)}"


def _last(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The last row that has `name`, or an empty one."""
    return next((row for row in reversed(rows) if name in row), {})


def _mean(values: list[float]) -> float | None:
    last = values[-_WINDOW:]
    return sum(last) / len(last) if last else None


def _stride(trained: list[dict[str, Any]]) -> float:
    steps = [row["step"] for row in trained[-_WINDOW:]]
    return (steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else 1.0


def _seconds_per_step(trained: list[dict[str, Any]]) -> float | None:
    """Over the last rows that say when they were written, validation and saving included."""
    timed = [(row["step"], row["elapsed_s"]) for row in trained[-_WINDOW:] if "elapsed_s" in row]
    # The clock restarts where a run resumes: only rows after the last such place count.
    for i in range(len(timed) - 1, 0, -1):
        if timed[i][1] < timed[i - 1][1]:
            timed = timed[i:]
            break
    if len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        return None
    return float(timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
