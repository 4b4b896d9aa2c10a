"""What a run tells: `log.jsonl`, TensorBoard, and a line on the terminal."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

_SCALARS = (
    "loss", "rr", "rr_correlation", "rr_grad_norm", "ce_grad_norm", "grad_norm", "lr",
    "tokens_per_s", "valid_loss", "valid_loss_uncond",
)  # fmt: skip


class Progress:
    """Log of one run, written by the first process."""

    def __init__(self, run: Path, step: int, steps: int) -> None:
        """
        Args:
            run: the run's folder.
            step: finished steps; what the log says of later ones is dropped, as they come again.
            steps: steps in all.
        """
        self._steps = steps
        self._rr: float | None = None
        path = run / "log.jsonl"
        if path.is_file():
            kept = [row for row in read_log(run) if row["step"] <= step]
            self._rr = next((row["rr"] for row in reversed(kept) if "rr" in row), None)
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
            partial.replace(path)
        self._file = path.open("a")
        self._board = SummaryWriter(str(run / "tb"), purge_step=step + 1)
        self._started = time.monotonic()
        self._first = step

    def log(self, row: dict[str, Any], say: bool = True) -> None:
        """Record one step: `step`, `loss`, `loss_per_stream`, `grad_norm`, `lr`, `tokens_per_s`,
        `dropped` (share of the batch without text), and where rr applied `rr`, `rr_correlation`,
        `rr_grad_norm` and `ce_grad_norm`."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        step = row["step"]
        # Steps with and without text have different losses: a curve each.
        kind = "unconditional" if row.get("dropped") == 1.0 else "conditional"
        for name in _SCALARS:
            if name in row:
                tag = f"loss/{kind}" if name == "loss" else name
                self._board.add_scalar(tag, row[name], step)
        for k, loss in enumerate(row.get("loss_per_stream", [])):
            self._board.add_scalar(f"loss_per_stream/{kind}_{k}", loss, step)
        self._rr = row.get("rr", self._rr)
        if say:
            print(self._line(row), flush=True)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        self._board.close()

    def _line(self, row: dict[str, Any]) -> str:
        step = row["step"]
        if "loss" not in row:
            values = "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k.startswith("valid"))
            return f"step {step}/{self._steps}  {values}"
        streams = " ".join(f"{loss:.3f}" for loss in row["loss_per_stream"])
        kind = "without text" if row["dropped"] == 1.0 else ""
        rr = "-" if self._rr is None else f"{self._rr:.4f}"
        done = step - self._first
        left = (time.monotonic() - self._started) / max(1, done) * (self._steps - step)
        return (
            f"step {step}/{self._steps}  loss {row['loss']:.4f} ({streams})  rr {rr}  "
            f"|g| {row['grad_norm']:.2f}  lr {row['lr']:.2e}  "
            f"{_thousands(row['tokens_per_s'])} tokens/s  eta {_clock(left)}  {kind}"
        ).rstrip()


def read_log(run: Path) -> list[dict[str, Any]]:
    """Rows of a run's `log.jsonl`; a last line cut short by a crash is left out."""
    rows = []
    for line in (run / "log.jsonl").read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _thousands(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
