"""Whether there is bfloat16, and whether it can be trusted: some kernels are wrong for some shapes.

Met with oneDNN on Intel's AMX (PyTorch 2.11): strided convolutions of 8 to 16 channels whose
kernels are twice their stride give noise, and so do the gradients of LSTMs 1024 wide.  Rounding
only changes a network's output or one weight's gradient by a few percent.  So where bfloat16 is
asked for it is tried once, tensor by tensor, and refused where it is noise.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from common.errors import AttuneError

BOUND = 0.15
"""Relative error (norm of the difference) above which it is not rounding: that was up to .08 of
outputs, and of gradients of single weights, from 2 to 32 filters; wrong kernels made .2 to 1.2."""


class WrongBfloat16(AttuneError):
    """A kernel of this processor is wrong; the next machine's may be right."""

    alone = True


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 by itself; emulated, it is slower than fp32, on
    processors without AVX-512 a hundred times."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check_bfloat16(what: str, exact: Tensor, rounded: Tensor, remedy: str) -> None:
    """Refuse wrong results.

    Args:
        what: was computed, for the message.
        exact: in float32, any shape.
        rounded: the same in bfloat16.
        remedy: what to set instead.

    Raises:
        WrongBfloat16: they are further apart than rounding explains, or `rounded` is not finite.
    """
    exact, rounded = exact.float(), rounded.float()
    size, error = torch.linalg.vector_norm(exact), torch.linalg.vector_norm(rounded - exact)
    error = float(error / size) if float(size) else float(error)
    if not error <= BOUND:
        raise WrongBfloat16(
            f"bfloat16 is wrong on this processor for {what}: {error:.0%} off, and rounding "
            f"explains a few percent; {remedy}"
        )
