"""A look at a codec's run from its folder alone: while it trains, after a kill, and at the end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from common.errors import AttuneError
from training.run.log import format_clock, read_log

_LOSSES = ("time", "mel", "adversarial", "feature", "commitment", "discriminator")


def read_status(out: Path, run: Path, now: float | None = None) -> dict[str, Any]:
    """Where a codec's run stands.

    Args:
        out: folder of the finished codec.
        run: the run's folder.
        now: seconds since the epoch, for tests.

    Returns:
        out, run, state (`finished`, `training`, `stopped` or `empty`), step, steps, share; losses
        (`loss` and each one unweighted), used and perplexity (per stream) of the last rows that
        have them; validation (figures of the last one, and its step), or None; eta_s, and
        last_line_s: seconds since the log grew.

    Raises:
        AttuneError: there is no run in that folder.
    """
    path, log = run / "config.json", run / "log.jsonl"
    done = (out / "model.safetensors").is_file()
    try:
        settings = json.loads(path.read_text())
        steps = int(settings["steps"])
        audio_s = settings["batch_size"] * settings["segment_s"]
    except (FileNotFoundError, NotADirectoryError):
        there = f"; {out} holds a finished codec" if done else ""
        raise AttuneError(f"{run}: no run there (no config.json){there}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise AttuneError(f"{path}: is damaged: {error!r}") from error
    rows = read_log(run) if log.is_file() else []
    trained = [row for row in rows if "loss" in row]
    last = trained[-1] if trained else {}
    step = last.get("step", 0)
    checks = [row for row in rows if "valid_mel" in row]
    quantized: dict[str, Any] = next((row for row in reversed(trained) if "used" in row), {})
    found: dict[str, Any] = {
        "out": str(out),
        "run": str(run),
        "state": "empty",
        "step": step,
        "steps": steps,
        "share": step / steps,
        "losses": {name: last[name] for name in ("loss", *_LOSSES) if name in last},
        "used": quantized.get("used"),
        "perplexity": quantized.get("perplexity"),
        "validation": {k.removeprefix("valid_"): v for k, v in checks[-1].items()}
        if checks
        else None,
        "eta_s": None,
        "last_line_s": None,
    }
    if rows:
        age = max(0.0, (time.time() if now is None else now) - log.stat().st_mtime)
        pace = audio_s / last["audio_s_per_s"] if last.get("audio_s_per_s") else 0.0
        # A line comes every few steps; validation and checkpoints come in between.
        stride = step - trained[-2]["step"] if len(trained) > 1 else 1
        found["state"] = "training" if age < max(120.0, 20 * pace * stride) else "stopped"
        found["last_line_s"] = round(age, 1)
        if pace and step < steps:
            found["eta_s"] = round(pace * (steps - step), 1)
    if done and step >= steps:
        found |= {"state": "finished", "eta_s": None}
    return found


def status_lines(found: dict[str, Any]) -> list[str]:
    """`read_status` for a person."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in found["losses"].items())
    valid, usage = "-", "-"
    if found["validation"]:
        figures = found["validation"]
        valid = (
            f"SI-SDR {figures['si_sdr_db']:.2f} dB  mel {figures['mel']:.4f}  L1 "
            f"{figures['time']:.5f}  of {figures['clips']} clips at step {figures['step']}"
        )
    if found["used"]:
        usage = "  ".join(
            f"{used:.1%} ({perplexity:.1f})"
            for used, perplexity in zip(found["used"], found["perplexity"], strict=True)
        )
    lines = [
        f"{found['out']}: {found['state']}",
        f"step      {found['step']}/{found['steps']} ({found['share']:.1%})"
        + (f"  eta {format_clock(found['eta_s'])}" if found["eta_s"] is not None else ""),
        f"losses    {losses or '-'}",
        f"codes     {usage}" + (" used (perplexity), by stream" if found["used"] else ""),
        f"valid     {valid}",
    ]
    if found["last_line_s"] is not None:
        lines.append(f"last line {format_clock(found['last_line_s'])} ago")
    return lines
