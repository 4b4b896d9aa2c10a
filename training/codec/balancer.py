"""Loss balancer (EnCodec, section 3.4): a loss's weight is its share of the gradient.

The gradient of each loss with respect to the decoder's output is divided by the moving average of
its norm. So a large gradient does not drown a small one, and weights do not depend on the losses'
scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Balancer:
    """Factors for gradients g_i: R w_i / (sum_j w_j) / <|g_i|>, in the paper's equation 4.

    <|g_i|> is the bias-corrected average, sum of d^(t-k) |g_i|_k over sum of d^(t-k), of the steps
    that had this loss: a loss that starts late is balanced from its first step.

    Args:
        weights: w_i by the loss's name.
        decay: d.
        total_norm: R, the norm of the sum if all gradients were orthogonal.
    """

    def __init__(self, weights: Mapping[str, float], decay: float, total_norm: float = 1.0) -> None:
        self.weights, self.decay, self.total_norm = weights, decay, total_norm
        self.averages = {name: torch.zeros(()) for name in weights}
        self.updates = dict.fromkeys(weights, 0)

    def factors(self, norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Update the averages with this step's norms; returns the factor of each gradient.

        Args:
            norms: scalar |g_i| of the global batch, for each loss of this step.
        """
        share = self.total_norm / sum(self.weights[name] for name in norms)
        found = {}
        for name, norm in norms.items():
            self.updates[name] += 1
            before = self.averages[name]
            gain = (1 - self.decay) / (1 - self.decay ** self.updates[name])
            self.averages[name] = before + gain * (norm - before)
            # Without the bound, a loss that has no gradient yet would give infinity.
            found[name] = self.weights[name] * share / self.averages[name].clamp_min(1e-12)
        return found

    def state(self) -> dict[str, Any]:
        """State for a checkpoint; `load` restores it."""
        return {"averages": self.averages, "updates": self.updates}

    def load(self, state: Mapping[str, Any]) -> None:
        self.averages, self.updates = dict(state["averages"]), dict(state["updates"])
