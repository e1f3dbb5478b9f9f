"""Forms of an adaptive module without spare work: a fixed number of learners, or only the chosen ones.

Legend: T positions of all samples, D width of the input, O width of the output.
"""

from __future__ import annotations

from torch import Tensor, nn

from xarch_acm.module import AdaptiveModule


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
        module: in whose weights learners are cut. shift: of the gate, see ``Point``.
    """

    def __init__(self, module: AdaptiveModule, shift: float | Tensor) -> None:
        super().__init__()
        self.gate, self.shift, self.least, self.outputs = module.gate, shift, module.least, module.outputs
        every = range(module.learners)
        self.learners = nn.ModuleList(Learners(module, n, n + 1, bias=False) for n in every)
        self.bias = None if module.out.bias is None else nn.Parameter(module.out.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        count_T = self.gate.scores(self.gate(x_TD), self.shift).argmax(-1) + self.least
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


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor.detach()[rows].contiguous()


def _linear(weight: Tensor | None, bias: Tensor | None) -> nn.Linear:
    assert weight is not None
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    made.bias = None if bias is None else nn.Parameter(bias.detach())  # type: ignore[assignment]
    return made
