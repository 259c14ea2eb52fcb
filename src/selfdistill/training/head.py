"""The output matrix of a network: from hidden states to logits, and from their gradient back.

    forward     Z = h W^T + b                      backward     dh = dZ W,   dW += dZ^T h,   db += sum dZ

Both are written out where the layer is a plain matrix, so that the gradient of the matrix is accumulated in place;
automatic differentiation would allocate another matrix for every chunk. Any other layer (adapters in the head) uses
automatic differentiation. The matrix is cast to the compute type once; its gradient is summed in the type of the
weights (float32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Devices that multiply 16-bit matrices into float32; elsewhere the factors are cast, which costs a CPU nothing.
_MIXED_PRODUCTS = {"cuda"}


@dataclass(frozen=True)
class Head:
    """`layer` maps hidden states [n, H] to products [n, V]; `shaped` turns these into logits."""

    layer: Callable[[Tensor], Tensor]
    softcap: float | None
    temperature: float

    def __call__(self, states_NH: Tensor) -> Tensor:
        """Float32 logits [n, V], capped and divided by the temperature."""
        return self.shaped(self.layer(states_NH))

    def shaped(self, products_NV: Tensor) -> Tensor:
        logits = products_NV.float()
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits / self.temperature if self.temperature != 1 else logits

    def backward(self, states_NH: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Add the gradient of `loss_of(logits)` to the weights; return that of the hidden states [n, H]."""
        leaf_NH = states_NH.detach().requires_grad_()
        loss_of(self(leaf_NH)).backward()
        return leaf_NH.grad


@dataclass(frozen=True)
class MatrixHead(Head):
    """A head that is a plain matrix; gradients are added to `weight_VH.grad` and `bias_V.grad` if these are trained."""

    weight_VH: Tensor
    bias_V: Tensor | None
    matrix_VH: Tensor

    def backward(self, states_NH: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        states_NH = states_NH.detach()
        with torch.no_grad():
            products_NV = self.layer(states_NH)
        loss_of(self.shaped(products_NV.requires_grad_())).backward()
        return self._backward(states_NH, products_NV.grad)

    @torch.no_grad()
    def _backward(self, states_NH: Tensor, gradient_NV: Tensor) -> Tensor:
        if self.weight_VH.requires_grad:
            _add_product(_gradient(self.weight_VH), gradient_NV.t(), states_NH)
        if self.bias_V is not None and self.bias_V.requires_grad:
            _gradient(self.bias_V).add_(gradient_NV.sum(0))
        return (gradient_NV @ self.matrix_VH).to(states_NH.dtype)


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    """total += first @ second. A GPU takes 16-bit factors and adds their products up in float32, as the total has."""
    if first.dtype != total.dtype and total.device.type in _MIXED_PRODUCTS:
        torch.addmm(total, first, second.to(first.dtype), out_dtype=total.dtype, out=total)
    else:
        total.addmm_(first.to(total.dtype), second.to(total.dtype))


def _gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        tensor.grad = torch.zeros_like(tensor)
    return tensor.grad


def matrix_head(
    weight_VH: Tensor, bias_V: Tensor | None, dtype: torch.dtype, softcap: float | None, temperature: float
) -> MatrixHead:
    """The head of a weight and a bias, computing in `dtype`."""
    matrix_VH = weight_VH.detach().to(dtype)
    bias = None if bias_V is None else bias_V.detach().to(dtype)
    return MatrixHead(
        lambda states: functional.linear(states.to(dtype), matrix_VH, bias),
        softcap,
        temperature,
        weight_VH,
        bias_V,
        matrix_VH,
    )


def is_matrix(layer: Any) -> bool:
    return type(layer) is nn.Linear
