"""Guards against the two ways in which codec training goes wrong.

Collapse: the first stream uses only a few codes, and the later streams quantize its residual.
Runaway: the discriminator distinguishes everything by a margin, and its gradient is noise for the
generator.  Both are checked once per window of steps and reported with figures.  A discriminator
that runs away is not updated until it is no longer ahead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.errors import AttuneError
from training.codec.quantizer import usage

MARGIN = 2.0
"""The generator's hinge loss if the discriminator puts decoded audio exactly at its margin, -1."""


class Guards:
    """Watches a run; every process gets the same figures and so decides alike.

    Args:
        window: steps per window.
        usage_floor: share of the first stream's codes that a window must use; less is reported.
        usage_patience: windows below the floor in a row that stop the run.
        discriminator_floor: a discriminator whose mean loss falls below this (2: it distinguishes
            nothing, 0: everything, by a margin) rests until its loss is twice this floor.
        adversarial_growth: a discriminator also rests if the generator's adversarial loss grows by
            this factor from one window to the next, to more than `MARGIN`.
    """

    def __init__(
        self,
        n_codebooks: int,
        codebook_size: int,
        window: int = 100,
        usage_floor: float = 0.1,
        usage_patience: int = 20,
        discriminator_floor: float = 0.1,
        adversarial_growth: float = 2.0,
    ) -> None:
        self._window = window
        self._usage_floor, self._usage_patience = usage_floor, usage_patience
        self._discriminator_floor = discriminator_floor
        self._adversarial_growth = adversarial_growth
        self.resting = False
        """Whether the discriminator must not be updated."""
        self._uses = torch.zeros(n_codebooks, codebook_size, dtype=torch.int64)
        self._losses = torch.zeros(2, dtype=torch.float64)  # discriminator, adversarial
        self._quantized = self._compared = self._low = 0
        self._adversarial_before = 0.0

    def observe(
        self, step: int, uses: Tensor | None, losses: Mapping[str, Tensor]
    ) -> tuple[list[str], dict[str, list[float]]]:
        """Count one step, and check the window if the step ends one.

        Args:
            step: its number, from 1.
            uses: int64 [K, C], how often the global batch chose each code; None before
                quantization begins.
            losses: losses of the global batch; only `discriminator` and `adversarial` are used.

        Returns:
            Lines to print, and `window_used` and `window_perplexity` per stream if a window of
            quantized steps ends here.

        Raises:
            AttuneError: the first stream has been below the floor for too many windows.
        """
        if uses is not None:
            self._uses = self._uses.to(uses.device) + uses
            self._quantized += 1
        if "discriminator" in losses and "adversarial" in losses:
            found = torch.stack([losses["discriminator"], losses["adversarial"]]).double()
            self._losses = self._losses.to(found.device) + found
            self._compared += 1
        if step % self._window:
            return [], {}
        lines, row = [], {}
        # Skip the window in which quantization began: its figures are of fewer steps.
        if self._quantized == self._window:
            used, perplexity = usage(self._uses)
            row = {"window_used": used, "window_perplexity": perplexity}
            lines += self._look_at_usage(step, used[0], perplexity[0])
        if self._compared == self._window:
            own, adversarial = (self._losses / self._compared).tolist()
            lines += self._look_at_discriminator(step, own, adversarial)
        self._uses = torch.zeros_like(self._uses)
        self._losses = torch.zeros_like(self._losses)
        self._quantized = self._compared = 0
        return lines, row

    def _look_at_usage(self, step: int, used: float, perplexity: float) -> list[str]:
        if used >= self._usage_floor:
            self._low = 0
            return []
        self._low += 1
        what = (
            f"step {step}: the first stream used {used:.1%} of its codes over {self._window} "
            f"steps (perplexity {perplexity:.1f}), expected {self._usage_floor:.0%} or more"
        )
        if self._low >= self._usage_patience:
            raise AttuneError(
                f"codec training: {what}, for {self._low} windows in a row: the codebook has "
                "collapsed; quantize later (codec_training.quantize_from_step) or lower "
                "codec_training.learning_rate"
            )
        return [f"{what}; {self._low} in a row"]

    def _look_at_discriminator(self, step: int, own: float, adversarial: float) -> list[str]:
        before, self._adversarial_before = self._adversarial_before, adversarial
        figures = (
            f"over {self._window} steps its loss was {own:.3f}, the generator's adversarial "
            f"loss {adversarial:.2f} (before: {before:.2f})"
        )
        grown = adversarial > self._adversarial_growth * before
        growing = before > 0 and adversarial > MARGIN and grown
        if not self.resting:
            self.resting = own < self._discriminator_floor or growing
            if self.resting:
                return [f"step {step}: the discriminator runs away, it rests: {figures}"]
        elif own >= 2 * self._discriminator_floor and not growing:
            self.resting = False
            return [f"step {step}: the discriminator learns again: {figures}"]
        return []

    def state(self) -> dict[str, Tensor]:
        """State for a checkpoint; `load` restores it."""
        numbers = [self._quantized, self._compared, self._low, int(self.resting)]
        return {
            "uses": self._uses,
            "losses": self._losses,
            "numbers": torch.tensor(numbers),
            "adversarial_before": torch.tensor(self._adversarial_before, dtype=torch.float64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._uses, self._losses = state["uses"], state["losses"]
        self._quantized, self._compared, self._low, resting = state["numbers"].tolist()
        self.resting = bool(resting)
        self._adversarial_before = float(state["adversarial_before"])
