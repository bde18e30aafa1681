"""Weight formats: how the matrices of a model lie in memory, and the product computed from them.

| name | bits | where | for |
|---|---|---|---|
| plain | as loaded | everywhere | the matrix as transformers keeps it |
| packed | as loaded | CPU | oneDNN's own blocked layout, laid out once instead of for every product |
| int8 | 8 | CPU | half the memory of bfloat16; one scale for each output |
| int4 | 4 | CPU | a quarter of it; a scale and a zero for 64 weights |

The rounded ones are cheap for single rows and grow with every row more; ``ramify bench forward`` says where each pays.

All but "plain" use operators that PyTorch ships but does not document, so a format is used only after it computed a
small product right on this machine (``unavailable``).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ramify.errors import first_line, unknown

GROUP = 64  # weights that share an int4 scale
CHUNK = 1 << 20  # weights rounded at a time, which bounds the memory for it
BLOCK = 64  # outputs that the operators lay out together


class Product(ABC):
    """``x`` [..., in] times the transpose of a matrix [out, in], plus a bias [out].

    ``nbytes``: memory the matrix takes. Raises ``ValueError`` for a matrix of a shape that the format cannot hold.
    """

    nbytes: int

    @abstractmethod
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None: ...

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrix [out, in] that is really multiplied with."""


class Plain(Product):
    """The matrix as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias, self.nbytes = weight, bias, weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def dense(self) -> Tensor:
        return self.weight


class Packed(Product):
    """The matrix in the blocked layout that oneDNN otherwise makes anew for every product.

    Besides being faster, it computes a row the same way whatever the number of rows, up to rounding that oneDNN does
    not promise; in bfloat16 its numbers are those of the plain product.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 1)
        self.bias = bias
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product

    def dense(self) -> Tensor:
        dense: Tensor = self.weight.to_dense()
        return dense


class Int8(Product):
    """Weights rounded to 8 bits, symmetric, with one scale for each output (absolute maximum / 127)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.shape[1] % 16:
            # In bfloat16 the operator reads on behind the last whole block of 16, beyond the matrix.
            raise ValueError(f"int8 needs a multiple of 16 inputs, not {weight.shape[1]}")
        scales, levels = zip(*map(self._rounded, _chunks(weight)), strict=True)
        self.scale, self.weight, self.bias = torch.cat(scales), torch.cat(levels), bias
        self.nbytes = self.weight.nbytes + self.scale.nbytes

    @staticmethod
    def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
        # Levels belong to the scale that will be multiplied with: the one in the weights' own dtype.
        scale = (weight.float().abs().amax(dim=1).clamp_(min=1e-12) / 127).to(weight.dtype)
        return scale, (weight.float() / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)

    def __call__(self, x: Tensor) -> Tensor:
        product = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]).contiguous(), self.weight, self.scale)
        product = product.view(*x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias

    def dense(self) -> Tensor:
        return (self.weight.float() * self.scale.float()[:, None]).to(self.scale.dtype)


class Int4(Product):
    """Weights rounded to 16 levels between the least and the greatest of each group of 64 inputs."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        if inputs % GROUP or outputs % 16:
            raise ValueError(f"int4 needs multiples of {GROUP} inputs and 16 outputs, not {inputs} and {outputs}")
        scales, zeros, levels = zip(*map(self._rounded, _chunks(weight)), strict=True)
        self.scale_and_zero = torch.stack([torch.cat(scales), torch.cat(zeros)], dim=2).transpose(0, 1).contiguous()
        self.levels, self.bias, self.inputs = torch.cat(levels), bias, inputs
        self.nbytes = self.levels.nbytes + self.scale_and_zero.nbytes

    @staticmethod
    def _rounded(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = weight.float().view(len(weight), -1, GROUP)
        low, high = groups.aminmax(dim=2)
        scale = ((high - low) / 15).clamp_(min=1e-9).to(weight.dtype)
        # The operator reads level n as (n - 8) x scale + zero.
        zero = (low + 8 * scale.float()).to(weight.dtype)
        levels = ((groups - zero.float()[..., None]) / scale.float()[..., None]).round_().add_(8).clamp_(0, 15)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.view(len(weight), -1).int(), 1)
        return scale, zero, packed

    def __call__(self, x: Tensor) -> Tensor:
        product = self._product(x.reshape(-1, x.shape[-1]).contiguous()).view(*x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias

    def _product(self, rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.levels, GROUP, self.scale_and_zero)
        return product

    def dense(self) -> Tensor:
        return self._product(torch.eye(self.inputs, dtype=self.scale_and_zero.dtype)).T.contiguous()


def _chunks(weight: Tensor) -> Sequence[Tensor]:
    """``weight`` in pieces of whole blocks of outputs."""
    outputs = max(1, CHUNK // (BLOCK * weight.shape[1])) * BLOCK
    return torch.split(weight.detach(), outputs)


FORMATS: dict[str, type[Product]] = {"plain": Plain, "packed": Packed, "int8": Int8, "int4": Int4}
ROUNDED = ("int8", "int4")  # formats that change the weights, and so the model


def weight_format(name: str) -> type[Product]:
    """The format called ``name``; raises ``RamifyError`` with the nearest name when there is none."""
    if name not in FORMATS:
        raise unknown("weight format", name, FORMATS)
    return FORMATS[name]


@functools.cache
def unavailable(name: str, dtype: torch.dtype, device: str) -> str:
    """Why ``name`` cannot be used for weights of ``dtype`` on a device of this type, "" when it can.

    Asked of the machine: a small product must agree with the one of the matrix that the format says it holds.
    """
    if name == "plain":
        return ""
    if device != "cpu":
        return f"{name} weights are offered on CPUs only, not on {device}"
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 2 * GROUP, generator=generator).to(dtype)
    bias = torch.randn(64, generator=generator).to(dtype)
    x = torch.randn(5, 2 * GROUP, generator=generator).to(dtype)
    try:
        product = FORMATS[name](weight, bias)
        found, held = product(x).double(), product.dense().double()
    except (RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
        return f"{name} weights in {str(dtype).removeprefix('torch.')} do not run on this machine ({first_line(error)})"
    expected = x.double() @ held.T + bias.double()
    half = dtype not in (torch.float32, torch.float64)
    # Written so that a difference that is no number is a reason as well.
    if not float((found - expected).abs().max() / expected.std()) <= (0.05 if half else 1e-4):
        return f"{name} weights compute wrong products on this machine"
    return ""
