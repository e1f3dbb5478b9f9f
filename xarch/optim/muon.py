"""Muon: momentum whose singular values all become about one (K. Jordan 2024, https://kellerjordan.github.io/posts/muon).

``torch.optim.Muon`` iterates in bfloat16, which a CPU without bfloat16 products emulates: a stage of a small field took
2.7 times as long with it. Here the iteration runs in the precision that the device multiplies fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that is iterated: steep at zero, and within 0.7 to 1.2 for any singular value after five times."""
RMS = 0.2
"""Root mean square of an update at learning rate 1, that of AdamW, so that their rates compare (arXiv 2502.16982)."""
FAINTEST = 1e-16
"""Norm below which an update fades out: what a vanished gradient leaves behind in the momentum is no direction."""
THINNEST = 16
"""Rows and columns that a matrix needs; the singular values of thinner ones say little about directions."""


def layer_matrices(module: nn.Module) -> set[str]:
    """Names of the parameters that Muon is made for: weights of linear layers, with at least 16 rows and columns.

    Tables are left out, also those that a linear layer shares: a row of a table is a direction of its own. A head that
    shares no table counts as a layer.
    """
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    layers = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)} - tables
    return {n for n, p in module.named_parameters() if id(p) in layers and min(p.shape) >= THINNEST}


def orthogonalised(update: Tensor) -> Tensor:
    """The orthogonal factor of a matrix [M, N], roughly: every singular value becomes 0.7 to 1.2.

    float32, on CUDA bfloat16; the result has the dtype of the argument. A matrix of zeros stays one, and one whose
    norm is below 1e-16 fades towards zero.
    """
    a, b, c = COEFFICIENTS
    x = update.bfloat16() if update.is_cuda else update.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp_min(FAINTEST)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.T if tall else x).to(update.dtype)


def update_work(shape: Sequence[int]) -> int:
    """Multiply-adds that :func:`orthogonalised` needs for a matrix of this shape [M, N]."""
    small, large = min(shape), max(shape)
    return ITERATIONS * (2 * small**2 * large + small**3)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        params: matrices, or groups of them as every optimiser of torch takes them; see :func:`layer_matrices`.
        lr: learning rate; an update has a root mean square of 0.2 of it, like AdamW's.
        momentum: weight of the past in the running mean of gradients.
        weight_decay: fraction of a weight, times ``lr``, that a step takes away.

    Raises:
        ValueError: a parameter is no matrix.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon moves matrices, a parameter has the shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(grad)
        mean = state["momentum"].lerp_(grad, 1 - momentum)
        update = orthogonalised(grad.lerp(mean, momentum))
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * RMS * max(parameter.shape) ** 0.5)
