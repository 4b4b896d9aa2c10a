"""Does this processor have bfloat16, and are its results right? Some kernels are wrong.

With oneDNN on Intel's AMX (PyTorch 2.11), strided convolutions of 8 to 16 channels whose kernels
are twice their stride give noise, and so do the gradients of LSTMs of width 1024. Rounding only
changes a network's output or one weight's gradient by a few percent. So bfloat16 is tried once,
tensor by tensor, before it is used, and refused if the result is noise.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from common.errors import AttuneError

BOUND = 0.15
"""Largest relative error (norm of the difference) that counts as rounding. Measured with 2 to 32
filters: rounding gave up to .08, on outputs and on gradients; wrong kernels gave .2 to 1.2."""


class WrongBfloat16(AttuneError):
    """A kernel of this processor is wrong. Another machine's may be right."""

    every_rank_reports = True


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions. Emulated bfloat16 is slower than fp32: a hundred
    times on processors without AVX-512."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    mkldnn = torch.backends.mkldnn
    if not (mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False  # also where ONEDNN_MAX_CPU_ISA keeps oneDNN from using the instructions
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True


def check_bfloat16(what: str, exact: Tensor, rounded: Tensor, remedy: str) -> None:
    """Compare a bfloat16 result with the float32 result.

    Args:
        what: names the computation in the message.
        exact: the float32 result, any shape.
        rounded: the bfloat16 result.
        remedy: what the user should do.

    Raises:
        WrongBfloat16: they differ by more than rounding explains, or `rounded` is not finite.
    """
    exact, rounded = exact.float(), rounded.float()
    size, error = torch.linalg.vector_norm(exact), torch.linalg.vector_norm(rounded - exact)
    error = float(error / size) if float(size) else float(error)
    if not error <= BOUND:
        raise WrongBfloat16(
            f"bfloat16 is wrong on this processor for {what}: {error:.0%} off, where rounding "
            f"explains only a few percent; {remedy}"
        )
