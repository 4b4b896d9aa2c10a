"""Float64 where the product says float32, in a process of its own.

Two orders of a sum then differ by 1e-16 of its terms: no vector between two codes gets the other
code, and a difference of more than 1e-9 is not rounding, on any processor.
"""

from __future__ import annotations

import numpy as np
import torch


def compute_in_float64() -> None:
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    from_numpy = torch.from_numpy

    def widened(array: np.ndarray) -> torch.Tensor:
        return from_numpy(array.astype(np.float64) if array.dtype == np.float32 else array)

    torch.from_numpy = widened
