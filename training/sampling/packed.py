"""Linear layers for a few rows: weights laid out once, in the type that sampling reads them in.

A decoding step multiplies every weight with two rows or a few, so it is bound by how fast weights
are read.  `F.linear` in fp32 reads them at a third of what some machines can; oneDNN's own layout,
bf16 and int8 come closer, and are less to read (`LOG.md` has the figures).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["fp32", "bf16", "int8"]
"""`fp32`: exact. `bf16`: weights and products. `int8`: weights only, one scale per row, bf16
products; the head is not (`head_kind`)."""


class Linear:
    """Products with one weight `[out, in]`."""

    def __call__(self, x: Tensor) -> Tensor:
        """`[n, in]` to `[n, out]`."""
        raise NotImplementedError

    def plus(self, total: Tensor, x: Tensor) -> Tensor:
        """`total` `[n, out]` plus the product, a new tensor."""
        return total + self(x)

    def expect(self, rows: int) -> None:
        """Get ready for products with this many rows, mostly; others stay right."""


def default_kind(device: torch.device, clips: int = 1) -> Kind:
    """What is fastest: int8 for one clip, else bf16 where the processor has instructions for it.

    Args:
        clips: that are made together.
    """
    if device.type != "cpu":
        return "bf16"
    # For more rows int8 products become bound by their conversion.
    if clips == 1 and (_has_bf16() or _is_avx2()):
        return "int8"
    return "bf16" if _has_bf16() else "fp32"


def head_kind(kind: Kind, device: torch.device) -> Kind:
    """Of the head beside layers of `kind`: its errors are errors of the logits, and it is a small
    part of what is read, so never int8."""
    if kind != "int8":
        return kind
    return "bf16" if device.type != "cpu" or _has_bf16() else "fp32"


def linear(weight: Tensor, kind: Kind, gelu: bool = False) -> Linear:
    """`x @ weight.T`, followed by GELU if asked.

    Args:
        weight: `[out, in]`.
        kind: what the weights are read as; `x` must be float32 for `fp32` and bfloat16 otherwise.
            `int8` is bf16 where the product with int8 cannot be had.
    """
    weight = weight.detach()
    # PyTorch's kernel for CPUs reads 16 values at a time, past the end if need be.
    if kind == "int8" and weight.shape[1] % 16 == 0:
        return _Int8(weight, gelu)
    weight = weight.to(torch.float32 if kind == "fp32" else torch.bfloat16)
    if weight.device.type == "cpu":
        if kind == "fp32" and _has_mkl() and _is_intel():
            return _Mkl(weight, gelu)
        if kind == "fp32" and _is_avx2() and _has_onednn():
            large = weight.numel() >= _Convolution.LEAST_SIZE
            return _Convolution(weight, gelu) if large else _Plain(weight, gelu)
        if kind == "fp32" and _is_avx512() and _has_onednn():
            return _ByRows(weight, gelu)
        if (kind == "fp32" or _has_bf16()) and _has_onednn():
            return _Packed(weight, gelu)
    return _Plain(weight, gelu)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest int8 `[out, in]` and scales bf16 `[out]`: `weight` is about their product."""
    weight = weight.float().contiguous()
    # Scales as they will be read: their rounding is made up for by the codes.
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).to(torch.bfloat16)
    codes = (weight / scale.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


class _Plain(Linear):
    def __init__(self, weight: Tensor, gelu: bool) -> None:
        self._weight = weight
        self._gelu = gelu

    def __call__(self, x: Tensor) -> Tensor:
        found = F.linear(x, self._weight)
        return F.gelu(found) if self._gelu else found

    def plus(self, total: Tensor, x: Tensor) -> Tensor:
        if total.dtype == x.dtype and not self._gelu:
            return torch.addmm(total, x, self._weight.t())
        return total + self(x)


class _LaidOut(_Plain):
    """Weights in a layout made for one number of rows, beside the plain ones, which serve all
    others and are mostly the model's own.
    """

    LEAST = 1
    """Rows from which on the layout is faster (`LOG.md`)."""

    _rows = 0
    _packed: Tensor

    def expect(self, rows: int) -> None:
        if rows == self._rows:
            return
        self._rows = 0
        self._packed = torch.empty(0)  # before the next one takes memory
        if rows >= self.LEAST:
            self._packed = self._lay_out(rows)
            self._rows = rows

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x) if x.shape[0] == self._rows else super().__call__(x)

    def plus(self, total: Tensor, x: Tensor) -> Tensor:
        if x.shape[0] != self._rows or total.dtype != x.dtype or self._gelu:
            return super().plus(total, x)
        return self._product(x).add_(total)

    def _lay_out(self, rows: int) -> Tensor:
        raise NotImplementedError

    def _product(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _Mkl(_LaidOut):
    """Intel's own library, which `F.linear` calls too, on its processors: it reads plain weights as
    fast as oneDNN its layout for a few rows, and for more has one of its own.
    """

    LEAST = 8

    def _lay_out(self, rows: int) -> Tensor:
        packed: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(self._weight.contiguous(), rows)
        return packed

    def _product(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkl._mkl_linear(x, self._packed, self._weight, None, self._rows)
        return F.gelu(found) if self._gelu else found


class _Convolution(_LaidOut):
    """A linear layer as a convolution of one line of pixels with a kernel of one.

    Without AVX-512 oneDNN has no layout for the weights of linear layers, but for those of
    convolutions it has.
    """

    LEAST_SIZE = 1 << 17
    """Values in a weight from which on what it saves is more than what each call costs
    (`LOG.md`)."""

    GEOMETRY = ([0, 0], [1, 1], [1, 1], 1)
    """Padding, stride, dilation, groups."""

    def __init__(self, weight: Tensor, gelu: bool) -> None:
        super().__init__(weight, gelu)
        after: tuple[Any, ...] = ("gelu", [], "none") if gelu else ("none", [], "")
        self._arguments = (None, *self.GEOMETRY, *after)  # no bias
        self._convolve: Any = torch.ops.mkldnn._convolution_pointwise.default

    def _lay_out(self, rows: int) -> Tensor:
        width = self._weight.shape[1]
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            self._weight.contiguous()[:, :, None, None], *self.GEOMETRY, [1, width, 1, rows]
        )
        # One line of pixels, channels last, of what goes in and what comes out.
        self._pixels = (1, width, 1, rows), (rows * width, 1, rows * width, width)
        self._lines = (rows, len(self._weight)), (len(self._weight), 1)
        return packed

    def _product(self, x: Tensor) -> Tensor:
        pixels = x.contiguous().as_strided(*self._pixels)
        found: Tensor = self._convolve(pixels, self._packed, *self._arguments)
        return found.as_strided(*self._lines)


class _Packed(Linear):
    """What PyTorch's own compiler calls for a frozen model on a CPU; tests hold it to F.linear."""

    def __init__(self, weight: Tensor, gelu: bool, rows: int = 1) -> None:
        """
        Args:
            rows: that the layout is made for; other numbers of rows are right, and slower.
        """
        ops: Any = torch.ops.mkldnn
        self._weight = ops._reorder_linear_weight(weight.contiguous(), rows)
        self._product: Any = ops._linear_pointwise.default
        self._sum: Any = ops._linear_pointwise.binary
        self._gelu = gelu
        self._after: tuple[str, list[float], str] = (
            ("gelu", [], "none") if gelu else ("none", [], "")
        )

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self._product(x, self._weight, None, *self._after)
        return found

    def plus(self, total: Tensor, x: Tensor) -> Tensor:
        if total.dtype == x.dtype and not self._gelu:
            found: Tensor = self._sum(x, total, self._weight, None, "add")
            return found
        return total + self(x)


class _ByRows(Linear):
    """Of oneDNN's layouts in fp32 the one for the rows that are expected: from a few rows on its
    products of linear layers read large weights at half the speed of its convolutions (`LOG.md`).
    """

    LEAST_SIZE = 1 << 19
    FEW = 4
    """Values in a weight, and rows, from which on it is a convolution."""
    MANY = 16
    """Rows from which on smaller weights gain by a layout for just so many; fewer rows lose."""

    def __init__(self, weight: Tensor, gelu: bool) -> None:
        self._weight = weight  # mostly the model's own
        self._gelu = gelu
        self._rows = 1
        self._product: Linear = _Packed(weight, gelu)

    def expect(self, rows: int) -> None:
        is_large = self._weight.numel() >= self.LEAST_SIZE
        rows = rows if rows >= (self.FEW if is_large else self.MANY) else 1
        if rows == self._rows:
            return
        self._rows = rows
        self._product = _Plain(self._weight, self._gelu)  # before the next one takes memory
        if rows > 1 and is_large:
            self._product = _Convolution(self._weight, self._gelu)
            self._product.expect(rows)
        else:
            self._product = _Packed(self._weight, self._gelu, rows)

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x)

    def plus(self, total: Tensor, x: Tensor) -> Tensor:
        return self._product.plus(total, x)


class _Int8(Linear):
    def __init__(self, weight: Tensor, gelu: bool) -> None:
        self._codes, self._scale = quantize(weight)
        self._product: Any = torch.ops.aten._weight_int8pack_mm.default
        self._gelu = gelu

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor
        if x.device.type == "cpu":
            found = self._product(x, self._codes, self._scale)
        else:
            found = F.linear(x, self._codes.to(x.dtype)) * self._scale
        return F.gelu(found) if self._gelu else found


def _has_mkl() -> bool:
    names = ("_mkl_reorder_linear_weight", "_mkl_linear")
    return torch.backends.mkl.is_available() and all(hasattr(torch.ops.mkl, n) for n in names)


def _has_onednn() -> bool:
    names = (
        "_reorder_linear_weight", "_linear_pointwise",
        "_reorder_convolution_weight", "_convolution_pointwise",
    )  # fmt: skip
    ops = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(hasattr(ops, n) for n in names)


def _has_bf16() -> bool:
    """Whether oneDNN has bf16 products here: AVX-512 at least."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_avx2() -> bool:
    """Whether AVX2 is all that the processor has."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _is_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@functools.cache
def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
