"""Links that differ in sizes only: translated once, with sizes and tables of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from xarch.contracts.chain import Chain, Link
from xarch.contracts.export import ExportGraph
from xarch.errors import PlanError
from xarch.export import onnx_export
from xarch.export.onnx_export import to_onnx
from xarch.export.profiles import cpu, npu
from xarch.export.structure import structure
from xarch.kernels import SIZES_ONLY


@dataclass(frozen=True)
class Sections:
    """Sizes of a pool's sections."""

    sizes: tuple[int, ...] = field(metadata=SIZES_ONLY)
    gain: float = 1.0


class Pool(nn.Module):
    """Adds every section's sum to a section's channel, and forgets the oldest entry."""

    def __init__(self, sections: Sections, *, python: bool = False) -> None:
        super().__init__()
        self.sections, self.python = sections, python
        self.scale = nn.Parameter(torch.rand(2), requires_grad=False)

    @property
    def table(self) -> Tensor:
        owners = [j for j, n in enumerate(self.sections.sizes) for _ in range(n)]
        return torch.tensor([[float(owner == j) for owner in owners] for j in range(2)])

    def forward(self, x_2: Tensor, pool_P: Tensor, own_2P: Tensor) -> tuple[Tensor, Tensor]:
        if self.python and pool_P.shape[0] > 5:
            pool_P = pool_P * 2.0 * int(pool_P.shape[0])
        read_2 = own_2P @ pool_P * self.scale * self.sections.gain
        moved_P = torch.cat([pool_P[1:], x_2[:1]])
        return x_2 + read_2, moved_P


def graph(
    sizes: list[tuple[int, int]], *, gains: tuple[float, ...] = (1.0, 1.0, 1.0), python: bool = False
) -> ExportGraph:
    torch.manual_seed(0)
    owner = nn.ModuleList([Pool(Sections(s, g), python=python) for s, g in zip(sizes, gains, strict=True)])
    links = [
        Link(
            one,
            [f"x{i}", f"pool.{i}", f"own.{i}"],
            [f"x{i + 1}", f"new.{i}"],
            {f"pool.{i}": {0: "pool"}, f"own.{i}": {1: "pool"}},
        )
        for i, one in enumerate(owner)
    ]
    pools = [f"pool.{i}" for i in range(len(sizes))]
    news = [f"new.{i}" for i in range(len(sizes))]
    chain = Chain(
        owner,
        links,
        inputs=["x0", *pools],
        outputs=[f"x{len(sizes)}", *news],
        constants={f"own.{i}": one.table for i, one in enumerate(owner)},
    )
    inputs = {"x": torch.randn(2), **{p: torch.randn(sum(s)) for p, s in zip(pools, sizes, strict=True)}}
    return ExportGraph("pools", chain.eval(), inputs, ["y", *news])


def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(onnx_export, "_recent", {})
    before = onnx_export._translate
    monkeypatch.setattr(onnx_export, "_translate", lambda g, profile: (seen.append(g.name), before(g, profile))[1])
    return seen


def test_sizes_and_tables_are_each_links_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = names(monkeypatch)
    # The second differs in its total, the third only in which entry belongs to which section.
    one = graph([(3, 4), (5, 6), (4, 3)])
    model = to_onnx(one, cpu)
    assert seen == ["pools, link 0"]
    assert {f"own.{i}" for i in range(3)} <= set(model.graph.initializers)
    shapes = {str(v.name): list(v.shape.numpy()) for v in model.graph.outputs}
    assert shapes == {"y": [2], "new.0": [7], "new.1": [11], "new.2": [7]}
    ir.save(model, tmp_path / "g.onnx")
    session = ort.InferenceSession(tmp_path / "g.onnx")
    found = session.run(None, {name: value.numpy() for name, value in one.inputs.items()})
    for a, b in zip(found, one.module(*one.inputs.values()), strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)


def test_a_free_dimension_stays_free_beside_sizes(tmp_path: Path) -> None:
    class Cached(nn.Module):
        def forward(self, x_L: Tensor, cache_T: Tensor, pool_P: Tensor) -> tuple[Tensor, Tensor]:
            return x_L + pool_P.sum() + cache_T.sum(), torch.cat([cache_T, x_L])

    class Sum(nn.Module):
        def forward(self, cache_T: Tensor) -> Tensor:
            return cache_T.sum(0)

    links = [Link(Cached(), ["x", "cache", "p"], ["y", "new"], {"p": {0: "pool"}}), Link(Sum(), ["new"], ["sum"])]
    chain = Chain(
        nn.Module(), links, inputs=["x", "cache"], outputs=["y", "sum"], constants={"p": torch.tensor([1.0, 2.0, 3.0])}
    )
    inputs = {"x": torch.randn(2), "cache": torch.randn(4)}
    one = ExportGraph("cached", chain.eval(), inputs, ["y", "sum"], {"cache": {0: "past"}})
    ir.save(to_onnx(one, cpu), tmp_path / "g.onnx")
    session = ort.InferenceSession(tmp_path / "g.onnx")
    for past in (0, 3):
        given = (inputs["x"], inputs["cache"][:past])
        found = session.run(None, {n: v.numpy() for n, v in zip(inputs, given, strict=True)})
        for a, b in zip(found, one.module(*given), strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_no_size_is_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = names(monkeypatch)
    to_onnx(graph([(3, 4), (5, 6), (4, 3)], gains=(1.0, 2.0, 1.0)), cpu)
    assert seen == ["pools, link 0", "pools, link 1"]
    a, b = Pool(Sections((1, 2))), Pool(Sections((2, 1)))
    assert structure(a) != structure(b)
    assert structure(a, sizes=False) == structure(b, sizes=False)


def test_a_static_profile_shares_no_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = names(monkeypatch)
    to_onnx(graph([(3, 4), (5, 6), (4, 3)]), npu)
    assert seen == [f"pools, link {i}" for i in range(3)]


def test_a_size_that_became_a_constant_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"made .*pool.* of 'pool\.0' a constant"):
        to_onnx(graph([(3, 4), (5, 6), (4, 3)], python=True), cpu)
