"""Linear layers for inputs of a few rows, with weights packed in a fast layout for sampling.

In a decoding step, the input of a layer has two rows (one clip with guidance) or a few more.  So
almost all time is spent on reading the weights.  Some machines read plain weights at a third of the
speed that is possible.  `LAYOUTS` says which layout is used where, and what was measured.

All layouts and operators here are those that PyTorch's own compiler calls for a frozen model on a
CPU.  They are not public; tests compare them with `F.linear`.
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
"""Number type of the weights.  `fp32`: exact.  `bf16`: products are bf16 too.  `int8`: one scale
per row, and bf16 products; the head is never int8 (`head_kind`)."""


class Layout(NamedTuple):
    """Functions that multiply inputs with one weight `[out, in]`, stored in some layout."""

    product: Callable[[Tensor], Tensor]
    """`[n, in]` to `[n, out]`, GELU included."""
    plus: Callable[[Tensor, Tensor], Tensor]
    """From total `[n, out]` and x `[n, in]` of one type: total + product of x, without GELU."""


def _plain(weight: Tensor, gelu: bool) -> Layout:
    def product(x: Tensor) -> Tensor:
        found = F.linear(x, weight)
        return F.gelu(found) if gelu else found

    return Layout(product, lambda total, x: torch.addmm(total, x, weight.t()))


def _onednn(weight: Tensor, gelu: bool, rows: int = 1) -> Layout:
    """oneDNN's layout for linear layers: fastest with `rows` rows, correct with any number."""
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
    """A linear layer run as a 1 x 1 convolution over a line of pixels, one pixel per row.

    The product is the same: a kernel of one pixel multiplies each pixel's channels with the weight.
    But oneDNN has other layouts for convolutions.  On AVX2 it has none for linear layers.  On
    AVX-512 those for convolutions are twice as fast with large weights and several rows.
    """
    height, width = weight.shape
    ops: Any = torch.ops.mkldnn
    geometry = ([0, 0], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups
    packed = ops._reorder_convolution_weight(
        weight.contiguous()[:, :, None, None], *geometry, [1, width, 1, rows]
    )
    convolve, arguments = ops._convolution_pointwise.default, (None, *geometry, *_after(gelu))
    # Sizes and strides.  `pixels` views the input as one line of pixels, channels last.  `lines`
    # views the output as rows.
    pixels = (1, width, 1, rows), (rows * width, 1, rows * width, width)
    lines = (rows, height), (height, 1)

    def product(x: Tensor) -> Tensor:
        found: Tensor = convolve(x.contiguous().as_strided(*pixels), packed, *arguments)
        return found.as_strided(*lines)

    return _for_rows(rows, product, _plain(weight, gelu))


def _for_rows(rows: int, product: Callable[[Tensor], Tensor], others: Layout) -> Layout:
    """A layout that only works with one number of rows, and another layout for other numbers."""
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
    """Arguments that tell oneDNN's operators what to apply to a product: GELU or nothing."""
    return ("gelu", [], "none") if gelu else ("none", [], "")


Rule = tuple[int, int, Callable[[Tensor, bool, int], Layout]]
"""Smallest number of values in a weight, smallest number of expected rows, layout.  If the second
number is 0, the rule fits any number of rows, and the layout is made for one row."""

# Times are in µs, with weights that are not in the processor's cache (`LOG.md`).  `LAYOUTS` is for
# fp32 weights only.  The other cases:
# - bf16, with instructions for it: oneDNN's layout (weight 512 x 2048, 2 rows: 88, plain 182).
# - int8: PyTorch's own product (the same weight: 60).
# - On a GPU, and on processors that are not listed here: plain weights.
LAYOUTS: dict[str, Sequence[Rule]] = {
    # With large weights and several rows, a convolution is twice as fast as oneDNN's linear layout
    # (8192 x 512, 8 rows: 442 and 1,006). Otherwise the linear layout is best. Made for one row, it
    # is fast up to 15 rows (2048 x 512, 2 rows: 101, plain 414). From 16 rows on, it must be made
    # for the actual number of rows (512 x 2048: 153, not 803).
    "AVX-512": ((1 << 19, 4, _convolution), (0, 16, _onednn), (0, 0, _onednn)),
    # oneDNN has no layout for linear layers here, so large weights run as convolutions (8192 x 512,
    # 2 rows: 743, plain 2,900). Each call costs about 57 more, so smaller weights stay plain.
    "AVX2": ((1 << 17, 1, _convolution),),
    # MKL with plain weights is faster than oneDNN with its layout (512 x 2048, 2 rows: 194, not
    # 220). From eight rows on, MKL's layout saves a sixth of the whole time (four clips: .84).
    "Intel": ((0, 8, _mkl),),
    "other": (),
}
"""Layouts of fp32 weights by processor: the first rule that fits, else plain weights."""


@dataclass
class Linear:
    """A linear layer, followed by GELU if `gelu`."""

    layout: Layout
    gelu: bool

    def __call__(self, x: Tensor) -> Tensor:
        """`[n, in]` to `[n, out]`."""
        return self.layout.product(x)

    def plus(self, total: Tensor, x: Tensor) -> Tensor:
        """`total` `[n, out]` plus the product, a new tensor."""
        if total.dtype == x.dtype and not self.gelu:
            return self.layout.plus(total, x)
        return total + self.layout.product(x)

    def expect(self, rows: int) -> None:
        """Choose the fastest layout for this number of rows; others still work, but slower."""


class _ByRows(Linear):
    """Float32 weights in the layout for the expected number of rows."""

    def __init__(self, weight: Tensor, gelu: bool, rules: Sequence[Rule]) -> None:
        super().__init__(_plain(weight, gelu), gelu)
        self._weight, self._rules = weight, rules  # no copy if the model is float32
        self._chosen: tuple[Any, int] | None = None

    def expect(self, rows: int) -> None:
        fit = [rule for rule in self._rules if self._weight.numel() >= rule[0] and rows >= rule[1]]
        chosen = (fit[0][2], rows if fit[0][1] else 1) if fit else None
        if chosen != self._chosen:
            self._chosen = chosen
            self.layout = _plain(self._weight, self.gelu)  # frees the memory of the last layout
            if chosen:
                self.layout = chosen[0](self._weight, self.gelu, chosen[1])


@dataclass(frozen=True)
class Processor:
    """The properties of a processor that decide how weights are read."""

    layouts: str
    """Key of `LAYOUTS`, for fp32 weights."""
    bf16: bool
    """Whether it has instructions for bf16 products."""
    int8: bool
    """Whether PyTorch's product with int8 weights is fast on it: AVX2 or later."""


@functools.cache
def processor_of(device: torch.device) -> Processor:
    """The processor of a device."""
    if device.type != "cpu":
        return Processor("other", bf16=True, int8=False)
    vectors = torch.backends.cpu.get_cpu_capability()
    layouts = {"AVX2": "AVX2", "AVX512": "AVX-512"}.get(vectors, "other")
    if not torch.backends.mkldnn.is_available():
        layouts = "other"
    cpuinfo = Path("/proc/cpuinfo")
    vendor = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    if torch.backends.mkl.is_available() and "GenuineIntel" in vendor:
        layouts = "Intel"
    return Processor(layouts, has_bfloat16(device), vectors.startswith("AVX"))


def default_kind(processor: Processor, clips: int = 1) -> Kind:
    """The fastest kind: int8 for one clip, else bf16 where the processor has instructions for it.

    Args:
        clips: number of clips that are made together.
    """
    # With more rows, int8 products spend most time on converting the weights, not on reading.
    if clips == 1 and processor.int8:
        return "int8"
    return "bf16" if processor.bf16 else "fp32"


def head_kind(kind: Kind, processor: Processor) -> Kind:
    """Kind of the head's weights in a model with layers of `kind`.

    It is never int8: errors of the head are errors of the logits, and the head is a small part of
    all weights.  With int8 layers, a bf16 head changes .8% of the drawn codes, an int8 head 1.1%.
    """
    if kind != "int8":
        return kind
    return "bf16" if processor.bf16 else "fp32"


def linear(
    weight: Tensor, kind: Kind, gelu: bool = False, processor: Processor | None = None
) -> Linear:
    """The layer `x @ weight.T`, followed by GELU if `gelu`.

    Args:
        weight: `[out, in]`.
        kind: what the weights are read as; `x` must be float32 for `fp32` and bfloat16 otherwise.
            `int8` becomes `bf16` for widths that are not a multiple of 16.
        processor: the processor that the layout is chosen for; the weight's own if None.
    """
    processor = processor or processor_of(weight.device)
    weight = weight.detach()
    # PyTorch's int8 kernel for CPUs reads 16 values at a time, also past the end of a row.
    if kind == "int8" and weight.shape[1] % 16 == 0:
        return Linear(_int8(weight, gelu), gelu)
    if kind == "fp32":
        return _ByRows(weight.float(), gelu, LAYOUTS[processor.layouts])
    packs = weight.device.type == "cpu" and processor.bf16
    return Linear((_onednn if packs else _plain)(weight.bfloat16(), gelu), gelu)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 `[out, in]` and bf16 scales `[out]` whose product is nearest to `weight`."""
    weight = weight.float().contiguous()
    # The int8 values are computed with rounded scales, so that they make up for the rounding.
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).to(torch.bfloat16)
    codes = (weight / scale.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale
