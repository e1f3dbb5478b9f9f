"""LAMB: Adam whose update of each tensor is scaled to the norm of the tensor (You et al. 2019, arXiv 1904.00962)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """LAMB with decoupled weight decay inside the trust ratio.

    Args:
        params: parameters or groups, as every optimiser of torch takes them.
        lr: learning rate.
        betas: weights of the past in the running means of gradients and of their squares.
        eps: added to the root of the mean square.
        weight_decay: fraction of a weight added to its update. A tensor without decay moves as by Adam, with trust 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
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
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(grad), torch.zeros_like(grad)
        state["step"] += 1
        first, second = group["betas"]
        step = float(state["step"])
        mean = state["exp_avg"].lerp_(grad, 1 - first) / (1 - first**step)
        square = state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second) / (1 - second**step)
        update = mean / (square.sqrt() + group["eps"])
        if group["weight_decay"]:
            update = update + group["weight_decay"] * parameter
            weight, moved = parameter.norm(), update.norm()
            update = update * torch.where((weight > 0) & (moved > 0), weight / moved, torch.ones_like(weight))
        parameter.sub_(update, alpha=group["lr"])
