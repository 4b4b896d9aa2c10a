"""Linear layers for a few rows: weights laid out once, in the type that sampling reads them in.

A decoding step multiplies every weight with two rows (one clip with guidance) or a few more, so it
takes as long as reading the weights does.  Plain weights are read at a third of what some machines
can.  `LAYOUTS` says what is chosen where, and what was measured.

All layouts and operators here are those that PyTorch's own compiler calls for a frozen model on a
CPU.  They are not public; the tests hold them to `F.linear`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.bfloat16 import has_bfloat16

Kind = Literal["fp32", "bf16", "int8"]
"""`fp32`: exact. `bf16`: weights and products. `int8`: weights only, one scale per row, bf16
products; the head is not (`head_kind`)."""


class Layout(NamedTuple):
    """One weight `[out, in]`, laid out: what multiplies with it."""

    product: Callable[[Tensor], Tensor]
    """`[n, in]` to `[n, out]`, GELU included."""
    plus: Callable[[Tensor, Tensor], Tensor]
    """(total `[n, out]`, `[n, in]`) to total plus the product; without GELU, of one type."""


def _plain(weight: Tensor, gelu: bool) -> Layout:
    def product(x: Tensor) -> Tensor:
        found = F.linear(x, weight)
        return F.gelu(found) if gelu else found

    return Layout(product, lambda total, x: torch.addmm(total, x, weight.t()))


def _onednn(weight: Tensor, gelu: bool, rows: int = 1) -> Layout:
    """oneDNN's layout for linear layers.  It is made for `rows` rows and serves any number."""
    ops: Any = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight.contiguous(), rows)
    product, plus, after = ops._linear_pointwise.default, ops._linear_pointwise.binary, _after(gelu)
    return Layout(
        lambda x: product(x, packed, None, *after),
        lambda total, x: plus(x, total, packed, None, "add"),
    )


def _mkl(weight: Tensor, gelu: bool, rows: int) -> Layout:
    """The layout of Intel's own library, which `F.linear` calls too."""
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), rows)

    def product(x: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkl._mkl_linear(x, packed, weight, None, rows)
        return F.gelu(found) if gelu else found

    return _for_rows(rows, product, _plain(weight, gelu))


def _convolution(weight: Tensor, gelu: bool, rows: int) -> Layout:
    """A linear layer run as a 1 x 1 convolution over a line of pixels, a row each.

    It is the same product: a kernel of one pixel multiplies each pixel's channels with the weight.
    But oneDNN has layouts for convolutions that it does not have for linear layers: on AVX2 any at
    all, on AVX-512 one that is twice as fast for large weights and several rows.
    """
    height, width = weight.shape
    ops: Any = torch.ops.mkldnn
    geometry = ([0, 0], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups
    packed = ops._reorder_convolution_weight(
        weight.contiguous()[:, :, None, None], *geometry, [1, width, 1, rows]
    )
    convolve, arguments = ops._convolution_pointwise.default, (None, *geometry, *_after(gelu))
    # Sizes and strides of one line of pixels, channels last, and of what comes out as rows.
    pixels = (1, width, 1, rows), (rows * width, 1, rows * width, width)
    lines = (rows, height), (height, 1)

    def product(x: Tensor) -> Tensor:
        found: Tensor = convolve(x.contiguous().as_strided(*pixels), packed, *arguments)
        return found.as_strided(*lines)

    return _for_rows(rows, product, _plain(weight, gelu))


def _for_rows(rows: int, product: Callable[[Tensor], Tensor], others: Layout) -> Layout:
    """A layout that only serves one number of rows, with another one for all others."""
    return Layout(
        lambda x: product(x) if len(x) == rows else others.product(x),
        lambda total, x: product(x).add_(total) if len(x) == rows else others.plus(total, x),
    )


def _int8(weight: Tensor, gelu: bool) -> Layout:
    codes, scale = quantize(weight)
    multiply: Any = torch.ops.aten._weight_int8pack_mm.default

    def product(x: Tensor) -> Tensor:
        on_cpu = x.device.type == "cpu"
        found = multiply(x, codes, scale) if on_cpu else F.linear(x, codes.to(x.dtype)) * scale
        return F.gelu(found) if gelu else found

    return Layout(product, lambda total, x: total + product(x))


def _after(gelu: bool) -> tuple[str, list[float], str]:
    """What oneDNN's operators do to a product."""
    return ("gelu", [], "none") if gelu else ("none", [], "")


Rule = tuple[int, int, Callable[[Tensor, bool, int], Layout]]
"""Least number of values in a weight, least number of rows that are expected (0: any number; the
layout is then made for one row), layout."""

# Times are µs with cold weights (`LOG.md`).  `linear` chooses the rest:
# - bf16, where the processor multiplies in it: oneDNN's layout (512 x 2048, 2 rows: 88, plain 182).
# - int8: PyTorch's own product (the same: 60).
# - On a GPU, and on processors that are not named here: plain weights.
LAYOUTS: dict[str, Sequence[Rule]] = {
    # oneDNN reads large weights with several rows at half the speed of a convolution (8192 x 512, 8
    # rows: 1,006 and 442). Its layout for one row is the best up to 15 rows (2048 x 512, 2 rows:
    # 101, plain 414), from 16 rows on it must be made for them (512 x 2048: 153 instead of 803).
    "AVX-512": ((1 << 19, 4, _convolution), (0, 16, _onednn), (0, 0, _onednn)),
    # oneDNN has no layout for linear layers here; large weights are convolutions (8192 x 512, 2
    # rows: 743, plain 2,900). A call costs some 57 more, so smaller weights stay plain.
    "AVX2": ((1 << 17, 1, _convolution),),
    # MKL reads plain weights faster than oneDNN its layout (512 x 2048, 2 rows: 194 and 220); from
    # eight rows on its own layout saves a sixth of the whole time (four clips: .84).
    "Intel": ((0, 8, _mkl),),
    "other": (),
}
"""Layouts of fp32 weights by processor; the first rule that holds, else plain weights."""


class Linear:
    """A linear layer, followed by GELU if asked."""

    def __init__(self, layout: Layout, gelu: bool) -> None:
        self.layout = layout
        self._gelu = gelu

    def __call__(self, x: Tensor) -> Tensor:
        """`[n, in]` to `[n, out]`."""
        return self.layout.product(x)

    def plus(self, total: Tensor, x: Tensor) -> Tensor:
        """`total` `[n, out]` plus the product, a new tensor."""
        if total.dtype == x.dtype and not self._gelu:
            return self.layout.plus(total, x)
        return total + self.layout.product(x)

    def expect(self, rows: int) -> None:
        """Get ready for products with mostly this many rows; others stay right, and are slower."""


class _ByRows(Linear):
    """Float32 weights in the layout for the rows that are expected."""

    def __init__(self, weight: Tensor, gelu: bool, rules: Sequence[Rule]) -> None:
        super().__init__(_plain(weight, gelu), gelu)
        self._weight, self._rules = weight, rules  # the weight is mostly the model's own, no copy
        self._chosen: tuple[Any, int] | None = None

    def expect(self, rows: int) -> None:
        fit = [rule for rule in self._rules if self._weight.numel() >= rule[0] and rows >= rule[1]]
        chosen = (fit[0][2], rows if fit[0][1] else 1) if fit else None
        if chosen != self._chosen:
            self._chosen = chosen
            self.layout = _plain(self._weight, self._gelu)  # before the next one takes memory
            if chosen:
                self.layout = chosen[0](self._weight, self._gelu, chosen[1])


@dataclass(frozen=True)
class Processor:
    """What decides how weights are read."""

    layouts: str
    """Of fp32 weights: a key of `LAYOUTS`."""
    bf16: bool
    """Whether it has instructions for bf16 products."""
    int8: bool
    """Whether PyTorch's product with int8 weights is fast on it: AVX2 or later."""


@functools.cache
def processor_of(device: torch.device) -> Processor:
    """What reads the weights on a device."""
    if device.type != "cpu":
        return Processor("other", bf16=True, int8=False)
    vectors = torch.backends.cpu.get_cpu_capability()
    layouts = {"AVX2": "AVX2", "AVX512": "AVX-512"}.get(vectors, "other")
    if not torch.backends.mkldnn.is_available():
        layouts = "other"
    if torch.backends.mkl.is_available() and _is_intel():
        layouts = "Intel"
    return Processor(layouts, has_bfloat16(device), vectors.startswith("AVX"))


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False


def default_kind(processor: Processor, clips: int = 1) -> Kind:
    """The fastest kind: int8 for one clip, else bf16 where the processor has instructions for it.

    Args:
        clips: that are made together.
    """
    # With more rows int8 products take as long as their conversion, no longer as reading.
    if clips == 1 and processor.int8:
        return "int8"
    return "bf16" if processor.bf16 else "fp32"


def head_kind(kind: Kind, processor: Processor) -> Kind:
    """Kind of the head's weights beside layers of `kind`.

    Never int8: errors of the head are errors of the logits, and the head is a small part of what is
    read.  With a bf16 head int8 layers change .8% of the drawn codes, with an int8 head 1.1%.
    """
    if kind != "int8":
        return kind
    return "bf16" if processor.bf16 else "fp32"


def linear(
    weight: Tensor, kind: Kind, gelu: bool = False, processor: Processor | None = None
) -> Linear:
    """`x @ weight.T`, followed by GELU if asked.

    Args:
        weight: `[out, in]`.
        kind: what the weights are read as; `x` must be float32 for `fp32` and bfloat16 otherwise.
            `int8` is bf16 where the product with int8 cannot be had.
        processor: that the layout is chosen for; the weight's own if None.
    """
    processor = processor or processor_of(weight.device)
    weight = weight.detach()
    # PyTorch's kernel for CPUs reads 16 values at a time, past the end if need be.
    if kind == "int8" and weight.shape[1] % 16 == 0:
        return Linear(_int8(weight, gelu), gelu)
    if kind == "fp32":
        return _ByRows(weight.float(), gelu, LAYOUTS[processor.layouts])
    packs = weight.device.type == "cpu" and processor.bf16
    return Linear((_onednn if packs else _plain)(weight.bfloat16(), gelu), gelu)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest int8 `[out, in]` and scales bf16 `[out]`: `weight` is about their product."""
    weight = weight.float().contiguous()
    # Scales as they will be read: their rounding is made up for by the codes.
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).to(torch.bfloat16)
    codes = (weight / scale.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale
