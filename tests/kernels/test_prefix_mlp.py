"""A perceptron whose positions run prefixes of the hidden units; what all operations promise is in test_contract.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from agreement import compare, each, needs_compiler, source
from torch import Tensor, nn

from xarch.errors import UsageError
from xarch.kernels import prefix_mlp
from xarch.kernels.prefix_mlp import ACTIVATIONS, cpp


@dataclass(frozen=True)
class Case:
    """One call; ``run`` says which numbers of blocks there are."""

    positions: int = 37
    width: int = 20
    edges: tuple[int, ...] = (0, 5, 16, 33)
    outputs: int = 9
    layers: int = 1
    activation: str | None = "gelu"
    bias: bool = True
    run: tuple[int, ...] = (2, 0, 3, 1, 3)

    def operands(self) -> list[Tensor | None]:
        draw, units = source(), self.edges[-1]
        shapes = [(units, self.width)] * self.layers + [(self.outputs, units)]
        weights = [[draw(*s) / s[1] ** 0.5, draw(s[0]) if self.bias else None] for s in shapes]
        return [draw(self.positions, self.width), *(t for layer in weights for t in layer)]

    def call(self, backend: str | None, *operands: Any) -> Tensor:
        x, *rest = operands
        *into, out = zip(rest[::2], rest[1::2], strict=True)
        count = torch.tensor(self.run).repeat(len(x))[: len(x)]
        return prefix_mlp(x, count, into, out, self.edges, activation=self.activation, backend=backend)


SIZES = [
    Case(),
    Case(layers=2, activation="silu", bias=False),
    # Blocks of no unit and of one, more inputs than stay in the nearest cache, outputs that fill no vector.
    Case(positions=23, width=270, edges=(0, 0, 1, 40), outputs=35, layers=2),
    # All alike, none at all, and nothing read.
    Case(run=(2,)),
    Case(run=(0,)),
    Case(positions=17, width=0, outputs=4),
]
ALL = [*SIZES, *(Case(activation=name) for name in ACTIVATIONS if name != "gelu")]


@each("case", torch=ALL, cpp=ALL, triton=[*ALL[:3], *ALL[6:]])
def test_values_and_gradients(backend: str, case: Case) -> None:
    compare(case, backend, 1e-5 if backend != "triton" else 2e-5)


@needs_compiler
def test_results_do_not_depend_on_threads_or_tiles() -> None:
    """Tiles are smaller with more threads; each position is computed alike in all of them."""
    case = Case(positions=500)
    operands = [None if t is None else t.float() for t in case.operands()]
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(case.call("cpp", *operands))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@each("positions", torch=[5], cpp=[cpp.FEWEST - 1, 40], triton=[40])
def test_counts_beyond_the_blocks_are_the_nearest(backend: str, positions: int) -> None:
    given = [None if t is None else t.float() for t in Case(positions=positions).operands()]
    x, count = given[0], torch.arange(positions) % 7 - 2
    into, out = [(given[1], given[2])], (given[3], given[4])
    found, wanted = (
        prefix_mlp(x, n, into, out, (0, 5, 16, 33), activation="relu", backend=backend)
        for n in (count, count.clamp(0, 3))
    )
    assert torch.allclose(found, wanted, atol=1e-5)


@each("positions", torch=[40], cpp=[40], triton=[40])
def test_a_position_that_is_not_finite_reaches_no_other(backend: str, positions: int) -> None:
    case = Case(positions=positions)
    clean = [None if t is None else t.float() for t in case.operands()]
    bad = [clean[0].clone(), *clean[1:]]
    bad[0][7] = torch.nan
    found, wanted = (case.call(backend, *t) for t in (bad, clean))
    others = torch.arange(positions) != 7
    assert torch.equal(found[others], wanted[others])
    assert torch.isnan(found[7]).all()


def test_an_activation_of_ones_own_runs_in_torch() -> None:
    case = Case(layers=2)
    x, *rest = case.operands()
    *into, out = zip(rest[::2], rest[1::2], strict=True)
    count = torch.tensor(case.run).repeat(8)[: len(x)]

    def own(a: Tensor, b: Tensor) -> Tensor:
        return nn.functional.gelu(a) * b

    found = prefix_mlp(x.float(), count, [(w.float(), b.float()) for w, b in into], [t.float() for t in out],
                       case.edges, activation=own)  # fmt: skip
    assert torch.allclose(found.double(), case.call("naive", x, *rest), atol=1e-5)
    with pytest.raises(UsageError, match="does not support own_activation"):
        prefix_mlp(x.float(), count, into, out, case.edges, activation=own, backend="cpp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": (0, 5, 4, 33)}, r"edges of blocks must rise from 0 to 33 units, got \[0, 5, 4, 33\]"),
        ({"edges": (0, 5, 30)}, "edges of blocks must rise from 0 to 33 units"),
        ({"activation": "swish"}, "no activation is called 'swish'"),
        ({"count_T": torch.zeros(3, dtype=torch.int64)}, r"count has shape \[3\], want \[37\]"),
        ({"into": []}, "one or two layers that read it"),
        ({"into": [(torch.zeros(33, 4), None)]}, r"weight has shape \[33, 4\], want \[33, 20\]"),
        ({"out": (torch.zeros(9, 33), torch.zeros(8))}, r"bias of out has shape \[8\], want \[9\]"),
    ],
)
def test_what_does_not_fit_is_an_error(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "x_TD": torch.zeros(37, 20),
        "count_T": torch.zeros(37, dtype=torch.int64),
        "into": [(torch.zeros(33, 20), None)],
        "out": (torch.zeros(9, 33), None),
        "edges": (0, 5, 16, 33),
    }
    with pytest.raises(UsageError, match=message):
        prefix_mlp(**{**given, **change})
