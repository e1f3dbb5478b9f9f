"""An adaptive computation module: learners in order of importance, and a gate that says how many of them run.

Legend: ... samples and positions, D width of the input, F hidden units, N learners, K choices of a gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xarch.kernels import prefix_mlp
from xarch_acm.filled import counts
from xarch_acm.gate import Gate

Watch = Callable[[Tensor, Tensor], None]
"""Called with what a gate gave and its choice, both [..., K]."""


@dataclass(frozen=True)
class Point:
    """How a module is run.

    Attributes:
        shift: for more learners (fewer, if negative): the logarithm by which gates that estimate take a learner to be
            cheaper, or what is added once per learner to the logits of others. A tensor in an exported graph.
        fixed: number of learners for every position, without the gate; None: the gate chooses. A tensor in an exported
            graph, which then computes all learners.
        filled: share of a sample's positions that runs each learner, those that want it most; None: as many as do.
        shuffled: whether the numbers that gates choose go to other positions, by chance, of all samples together.
    """

    shift: float | Tensor = 0.0
    fixed: int | Tensor | None = None
    filled: tuple[float, ...] | None = None
    shuffled: bool = False


class AdaptiveModule(nn.Module):
    """out(hidden(x)) restricted to the hidden units of the first k learners, k chosen for every position. With all
    learners it is the module it was made from; the bias of ``out`` does not depend on k.

    Args:
        into, activation, out: see ``xarch.Replaceable``; the layers become the module's own.
        learners: N; blocks of hidden units of equal size, up to one unit.
        least: fewest learners that a gate may choose, 0 or 1.
        gate_width: hidden width of the gate. positions: see ``Gate``.
        temperature: of the softmax over gates that are sampled in train mode; 0: they are not.
        function: see ``xarch.Replaceable``.
        estimates: whether the gate estimates what is lost with each number of learners, instead of choosing among them.
        task_gradient: whether the gradient of the output reaches the gate.

    Attributes:
        point: how it is run.
        watch: told of every choice, if set.
    """

    def __init__(
        self,
        into: Sequence[nn.Linear],
        activation: Callable[..., Tensor] | None,
        out: nn.Linear,
        *,
        learners: int,
        least: int,
        gate_width: int,
        positions: int = 0,
        temperature: float,
        estimates: bool,
        function: str = "",
        task_gradient: bool = True,
    ) -> None:
        super().__init__()
        self.function = function or activation
        self.task_gradient = task_gradient
        self.into, self.activation, self.out = nn.ModuleList(into), activation, out
        self.learners, self.least, self.temperature = learners, least, temperature
        self.inputs, self.units, self.outputs = into[0].in_features, out.in_features, out.out_features
        gate = Gate(self.inputs, gate_width, learners + 1 - least, estimates=estimates, positions=positions)
        self.gate = gate.to(out.weight.device)
        self.edges = tuple(self.units * n // learners for n in range(learners + 1))
        self.point = Point()
        self.watch: Watch | None = None
        owner = [n for n in range(learners) for _ in range(self.edges[n], self.edges[n + 1])]
        self.owner_F: Tensor
        self.register_buffer("owner_F", torch.tensor(owner, device=out.weight.device), persistent=False)

    @property
    def layers(self) -> list[nn.Linear]:
        """Return the layers that read the input."""
        return [layer for layer in self.into if isinstance(layer, nn.Linear)]

    @property
    def cost(self) -> float:
        """Return the multiply-adds of one learner at one position, the mean of all."""
        return self.units * (self.inputs * len(self.into) + self.outputs) / self.learners

    @property
    def gated(self) -> bool:
        """Whether its gate runs."""
        return self.point.fixed is None

    @property
    def gate_cost(self) -> float:
        """Return the multiply-adds of the gate at one position."""
        into = self.gate.into
        return 0.0 if into is None else float(into.weight.numel() + self.gate.out.weight.numel())

    def hidden(self, x: Tensor) -> Tensor:
        """Return the hidden values [..., F]."""
        read = [layer(x) for layer in self.into]
        return read[0] if self.activation is None else self.activation(*read)

    def prefixes(self, x: Tensor) -> Tensor:
        """Return the outputs of the first 1, 2, ..., N learners, [..., N, width of the output]."""
        hidden = self.hidden(x)
        total = None if self.out.bias is None else self.out.bias.expand(*x.shape[:-1], -1)
        found = []
        for begin, end in zip(self.edges, self.edges[1:], strict=False):
            part = F.linear(hidden[..., begin:end], self.out.weight[:, begin:end])
            total = part if total is None else total + part
            found.append(total)
        return torch.stack(found, -2)

    def bare(self, like: Tensor) -> Tensor:
        """Return the output without any learner, as large as ``like`` [..., width of the output]."""
        return torch.zeros_like(like) if self.out.bias is None else self.out.bias.expand_as(like)

    def forward(self, x: Tensor) -> Tensor:
        fixed = self.point.fixed
        if isinstance(fixed, Tensor):
            return self.out(self.hidden(x) * (fixed > self.owner_F))
        if fixed is not None:
            if self.watch is not None:
                choice = x.new_zeros(*x.shape[:-1], self.learners + 1 - self.least)
                choice[..., fixed - self.least] = 1.0
                self.watch(choice, choice)
            return self._first(x, fixed)
        made = self.gate(x)
        scores = self.gate.scores(made, self.point.shift)
        if self.training or (torch.is_grad_enabled() and scores.requires_grad):
            choice = self.chosen(scores)
            # A unit runs if at least as many learners do as come up to its own: the sum over these choices.
            tails = (choice if self.task_gradient else choice.detach()).flip(-1).cumsum(-1).flip(-1)
            kept = tails[..., 1:] if self.least == 0 else tails
            hidden = self.hidden(x)
            if self.watch is not None:
                self.watch(made, choice)
            return self.out(hidden * kept.to(hidden.dtype).index_select(-1, self.owner_F))
        best = scores.argmax(-1, keepdim=True) if self.point.filled is None else self._filled(scores, self.point.filled)
        if self.point.shuffled:
            places = torch.randperm(best.numel(), generator=torch.Generator().manual_seed(best.numel()))
            best = best.flatten()[places.to(best.device)].view_as(best)
        if self.watch is not None:
            self.watch(made, F.one_hot(best[..., 0], made.shape[-1]).to(made))
        count = best[..., 0] + self.least
        if x.is_meta or torch.compiler.is_exporting():
            return self.out(self.hidden(x) * (count[..., None] > self.owner_F))
        if bool((count == self.learners).all()):
            return self.out(self.hidden(x))
        flat = x.reshape(-1, x.shape[-1])
        return self._grouped(flat, count.flatten()).reshape(*x.shape[:-1], self.outputs)

    def _grouped(self, x_TD: Tensor, count_T: Tensor) -> Tensor:
        """Return the outputs [T, O] of as many learners as each position runs, and no others."""
        layers: list[tuple[Tensor, Tensor | None]] = [(each.weight, each.bias) for each in (*self.layers, self.out)]
        if torch.is_autocast_enabled(x_TD.device.type):
            dtype = torch.get_autocast_dtype(x_TD.device.type)
            x_TD = x_TD.to(dtype)
            layers = [(weight.to(dtype), None if bias is None else bias.to(dtype)) for weight, bias in layers]
        return prefix_mlp(x_TD, count_T, layers[:-1], layers[-1], self.edges, activation=self.function)

    def _first(self, x: Tensor, learners: int) -> Tensor:
        """Return the output of the first learners at every position."""
        if not learners:
            return self.bare(x.new_zeros(*x.shape[:-1], self.outputs))
        units = slice(0, self.edges[learners])
        read = [
            F.linear(x, layer.weight[units], None if layer.bias is None else layer.bias[units]) for layer in self.layers
        ]
        hidden = read[0] if self.activation is None else self.activation(*read)
        return F.linear(hidden, self.out.weight[:, units], self.out.bias)

    def _filled(self, scores: Tensor, shares: Sequence[float]) -> Tensor:
        """Return choices [..., 1] by the room that learners have; positions are all dimensions but first and last."""
        flat = scores.reshape(scores.shape[0], -1, scores.shape[-1])
        return (counts(flat, shares) - self.least).clamp_min(0).reshape(*scores.shape[:-1], 1)

    def chosen(self, scores: Tensor) -> Tensor:
        """Return choices [..., K]: one-hot, with the gradient of their softmax; sampled in train mode, unless the
        temperature is 0."""
        soft = scores
        if self.training and self.temperature:
            soft = (scores - torch.empty_like(scores).exponential_().log()) / self.temperature
        soft = soft.softmax(-1)
        hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
        return hard + (soft - soft.detach())

    def distances(self, prefixes: Tensor, wanted: Tensor) -> Tensor:
        """Return the distance of every prefix from the module's wanted output, k = least ... N, [..., K].

        Args:
            prefixes: [..., N, width], see :meth:`prefixes`. wanted: [..., width].
        """
        if self.least == 0:
            prefixes = torch.cat([self.bare(wanted)[..., None, :], prefixes], -2)
        return (prefixes - wanted[..., None, :]).float().norm(dim=-1)
