"""Forms of an adaptive module without spare work: a fixed number of learners, or only the chosen ones.

Legend: B samples, T positions, of all samples where there is no B, R those that run, D width of the input, O of the
output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch_acm.filled import ranks, rooms
from xarch_acm.module import AdaptiveModule, Point


class Learners(nn.Module):
    """Some consecutive learners, [..., D] -> [..., O].

    Args:
        module: whose weights are cut. begin, end: first learner, and the one after the last.
        bias: whether the output's bias is added.
    """

    def __init__(self, module: AdaptiveModule, begin: int, end: int, *, bias: bool) -> None:
        super().__init__()
        units = slice(module.edges[begin], module.edges[end])
        self.into = nn.ModuleList(
            _linear(_rows(layer.weight, units), _rows(layer.bias, units)) for layer in module.layers
        )
        self.activation = module.activation
        self.out = _linear(module.out.weight.detach()[:, units].contiguous(), module.out.bias if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        read = [layer(x) for layer in self.into]
        made: Tensor = self.out(read[0] if self.activation is None else self.activation(*read))
        return made


class StaticModule(nn.Module):
    """The first learners of an adaptive module, without its gate; without any, its bias."""

    def __init__(self, module: AdaptiveModule, learners: int) -> None:
        super().__init__()
        self.learners = Learners(module, 0, learners, bias=True) if learners else None
        bare = None if learners or module.out.bias is None else module.out.bias.detach()
        self.bias, self.outputs = None if bare is None else nn.Parameter(bare), module.outputs

    def forward(self, x: Tensor) -> Tensor:
        if self.learners is not None:
            made: Tensor = self.learners(x)
            return made
        shape = (*x.shape[:-1], self.outputs)
        return x.new_zeros(shape) if self.bias is None else self.bias.expand(shape)


class DynamicModule(nn.Module):
    """Every learner on the positions that chose it: its gate, one gather, two products and one scatter per learner.

    Args:
        module: in whose weights learners are cut. point: its shift, see ``Point``.
    """

    def __init__(self, module: AdaptiveModule, point: Point) -> None:
        super().__init__()
        self.gate, self.point, self.least, self.outputs = module.gate, point, module.least, module.outputs
        every = range(module.learners)
        self.learners = nn.ModuleList(Learners(module, n, n + 1, bias=False) for n in every)
        self.bias = None if module.out.bias is None else nn.Parameter(module.out.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        count_T = self.gate.scores(self.gate(x), self.point.shift).argmax(-1).flatten() + self.least
        y_TO = x.new_zeros(x_TD.shape[0], self.outputs)
        if self.bias is not None:
            y_TO = y_TO + self.bias
        for number, learner in enumerate(self.learners):
            if number < self.least:
                y_TO = y_TO + learner(x_TD)
                continue
            rows = (count_T > number).nonzero()[:, 0]
            y_TO = y_TO.index_put((rows,), learner(x_TD.index_select(0, rows)), accumulate=True)
        return y_TO.reshape(*x.shape[:-1], self.outputs)


class FilledModule(nn.Module):
    """Every learner on as many positions of a sample as it has room for, all in the order of what they want: a gather,
    two products per learner and a gather back.

    Args:
        module: in whose weights learners are cut. point: its shift and shares, see ``Point``.
    """

    def __init__(self, module: AdaptiveModule, point: Point) -> None:
        super().__init__()
        self.gate, self.point, self.outputs = module.gate, point, module.outputs
        self.learners = nn.ModuleList(Learners(module, n, n + 1, bias=False) for n in range(module.learners))
        self.bias = None if module.out.bias is None else nn.Parameter(module.out.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = x.reshape(x.shape[0], -1, x.shape[-1])
        samples, positions = x_BTD.shape[:2]
        rank_BT = ranks(self.gate.scores(self.gate(x_BTD), self.point.shift))
        room = rooms(self.point.filled or (), positions)
        y = x.new_zeros(samples, positions, self.outputs)
        if room[0]:
            # The position at each place, as a sum: the operator that finds the largest gives 64-bit integers.
            place_R1 = torch.arange(room[0], device=x.device, dtype=torch.int32)[:, None]
            number_T = torch.arange(positions, device=x.device, dtype=x.dtype)
            order_BR = ((rank_BT[:, None, :] == place_R1).to(x.dtype) * number_T).sum(-1).to(torch.int32)
            sorted_BRD = _taken(x_BTD, order_BR)
            parts = [
                F.pad(learner(sorted_BRD[:, :r]), (0, 0, 0, positions - r))
                for learner, r in zip(self.learners, room, strict=True)
                if r
            ]
            y = _taken(torch.stack(parts).sum(0), rank_BT)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.outputs)


def _taken(rows_BTD: Tensor, index_BR: Tensor) -> Tensor:
    """Return the rows of each sample with these numbers [B, R, D]."""
    if rows_BTD.shape[0] == 1:
        return rows_BTD[0].index_select(0, index_BR[0])[None]
    samples, positions = rows_BTD.shape[:2]
    first_B1 = torch.arange(samples, device=rows_BTD.device, dtype=index_BR.dtype)[:, None] * positions
    return rows_BTD.flatten(0, 1).index_select(0, (index_BR + first_B1).flatten()).unflatten(0, index_BR.shape)


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor.detach()[rows].contiguous()


def _linear(weight: Tensor | None, bias: Tensor | None) -> nn.Linear:
    assert weight is not None
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    made.bias = None if bias is None else nn.Parameter(bias.detach())  # type: ignore[assignment]
    return made
