"""Chains of links: translated once per structure, with weights of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from xarch.contracts.chain import Chain, Link
from xarch.contracts.export import ExportGraph
from xarch.export import onnx_export
from xarch.export.onnx_export import Translated, to_onnx
from xarch.export.origins import origins
from xarch.export.profiles import cpu, cpu_int4, openvino
from xarch.export.structure import structure


class Block(nn.Module):
    """y = x + s W (a x / norm), carried with a cache of all earlier x."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain, self.norm, self.proj = gain, nn.Parameter(torch.ones(4)), nn.Linear(4, 4, bias=False)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, step: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        cache = torch.cat([cache, x], 1)
        turned = self.proj(x * self.norm * self.gain) * (self.scale * self.norm).square()
        return x + turned + cache.sum(1, keepdim=True) * torch.cos(step.float()), cache


class Model(nn.Module):
    def __init__(self, gains: tuple[float, ...] = (1.0, 1.0, 2.0)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks = nn.Embedding(9, 4), nn.ModuleList(map(Block, gains))
        with torch.no_grad():
            for block in self.blocks[1:]:
                for p in block.parameters():
                    p.add_(torch.randn_like(p))


class Enter(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embed = model.embed

    def forward(self, ids: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(ids), step


class Leave(Enter):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.embed.weight.T


def chain_graph(model: Model) -> ExportGraph:
    count = len(model.blocks)
    links = [Link(Enter(model), ["ids", "step"], ["x.0", "kept"])]
    links += [
        Link(block, [f"x.{i}", "kept", f"cache.{i}"], [f"x.{i + 1}", f"new.{i}"])
        for i, block in enumerate(model.blocks)
    ]
    links.append(Link(Leave(model), [f"x.{count}"], ["logits"]))
    caches = [f"cache.{i}" for i in range(count)]
    outputs = ["logits", *(f"new.{i}" for i in range(count)), "kept"]
    chain = Chain(model, links, inputs=["ids", "step", *caches], outputs=outputs)
    inputs = {"ids": torch.tensor([[1, 2]]), "step": torch.tensor([3]), **{c: torch.randn(1, 3, 4) for c in caches}}
    return ExportGraph("chain", chain.eval(), inputs, outputs, {c: {1: "past"} for c in caches})


def assert_same(graph: ExportGraph, model: ir.Model, folder: Path) -> None:
    ir.save(model, folder / "g.onnx")
    session = ort.InferenceSession(folder / "g.onnx")
    assert [i.name for i in session.get_inputs()] == list(graph.inputs)
    for past in (0, 2):
        given = {n: v[:, :past] if n.startswith("cache") else v for n, v in graph.inputs.items()}
        with torch.no_grad():
            wanted = graph.module(*given.values())
        found = session.run(list(graph.outputs), {n: v.numpy() for n, v in given.items()})
        for name, a, b in zip(graph.outputs, found, wanted, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    before = onnx_export._translate

    def translate(graph: ExportGraph, profile: object) -> object:
        seen.append(graph.name)
        return before(graph, profile)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_export, "_recent", {})
    monkeypatch.setattr(onnx_export, "_translate", translate)
    return seen


def test_links_of_one_structure_are_translated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    model = Model()
    graph = chain_graph(model)
    translated = to_onnx(graph, cpu)
    # the third block has another gain, which is no weight
    assert seen == [f"chain, link {i}" for i in (0, 1, 3, 4)]
    assert_same(graph, translated, tmp_path)
    weights = {n for n, v in translated.graph.initializers.items() if v.const_value.size > 9}
    assert weights == {"embed.weight", *(f"blocks.{i}.proj.weight" for i in range(3))}
    cosines = [node for node in translated.graph if node.op_type == "Cos"]
    assert len(cosines) == 1
    # what depends on weights alone is computed while exporting
    assert [n for n in translated.graph if all(v is None or v.const_value is not None for v in n.inputs)] == []
    place = next(o for v, o in origins(translated).items() if v.startswith("3/"))
    assert place.startswith("blocks.2")


def test_a_size_computed_between_links_is_translated_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1)

    class Both(nn.Module):
        def forward(self, x: Tensor, cache: Tensor) -> Tensor:
            return torch.cat([cache, x], 1)

    seen = counted(monkeypatch)
    links = [Link(Both(), ["x", "cache"], ["all"]), Link(Sum(), ["all"], ["y"])]
    chain = Chain(nn.Module(), links, inputs=["x", "cache"], outputs=["y"])
    inputs = {"x": torch.randn(1, 2, 4), "cache": torch.randn(1, 3, 4)}
    graph = ExportGraph("sum", chain.eval(), inputs, ["y"], {"cache": {1: "past"}})
    assert_same(graph, to_onnx(graph, cpu), tmp_path)
    assert seen[-1] == "sum"


def test_structure_sees_everything_but_the_values_of_weights() -> None:
    plain = structure(Block())
    assert plain == structure(Model().blocks[1])
    assert plain != structure(Block(2.0))
    tied, constant, other = Block(), Block(), Block()
    tied.scale = tied.norm
    constant.table = torch.ones(3)  # type: ignore[assignment]
    other.table = torch.zeros(3)  # type: ignore[assignment]
    assert len({plain, structure(tied), structure(constant), structure(other)}) == 4
    assert structure(Block().train()) != structure(Block().eval())


def test_names_must_exist_and_be_given_once() -> None:
    relu = nn.ReLU()
    with pytest.raises(ValueError, match=r"link 0 reads \['z'\]"):
        Chain(relu, [Link(relu, ["z"], ["y"])], inputs=["x"], outputs=["y"])
    with pytest.raises(ValueError, match=r"gives \['x'\] a second time"):
        Chain(relu, [Link(relu, ["x"], ["x"])], inputs=["x"], outputs=["x"])
    with pytest.raises(ValueError, match=r"no link gives \['q'\]"):
        Chain(relu, [Link(relu, ["x"], ["y"])], inputs=["x"], outputs=["q"])


class Positive(nn.Module):
    """Doubles the positive entries, as many as there are, and moves all."""

    def __init__(self, moved: float) -> None:
        super().__init__()
        self.moved = nn.Parameter(torch.tensor(moved), requires_grad=False)

    def forward(self, x_N: Tensor) -> tuple[Tensor]:
        rows = (x_N > 0).nonzero()[:, 0]
        return (x_N.index_put((rows,), x_N.index_select(0, rows), accumulate=True) + self.moved,)


def test_counts_that_depend_on_values_are_each_links_own(tmp_path: Path) -> None:
    """onnxruntime took the counts of two links for one size and failed where they differed."""
    owner = nn.ModuleList([Positive(-3.0), Positive(1.0), Positive(0.0)])
    links = [Link(one, [f"x{i}"], [f"x{i + 1}"]) for i, one in enumerate(owner)]
    x = torch.tensor([1.0, 2.0, -1.0])
    one = ExportGraph("g", Chain(owner, links, inputs=["x0"], outputs=["x3"]).eval(), {"x": x}, ["y"])
    model = to_onnx(one, cpu)
    counts = [
        str(d) for n in model.graph if n.op_type == "Transpose" for d in n.outputs[0].shape if not isinstance(d, int)
    ]
    assert len(counts) == len(set(counts)) == 3
    ir.save(model, tmp_path / "g.onnx")
    session = ort.InferenceSession(tmp_path / "g.onnx")
    for values in (x, -x, x - 5):
        assert np.allclose(session.run(None, {"x": values.numpy()})[0], one.module(values)[0].numpy())


def whole_graph(model: nn.Linear) -> ExportGraph:
    return ExportGraph("whole", model.eval(), {"x": torch.zeros(2, 4)}, ["y"])


def test_another_student_of_the_same_structure_is_not_translated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch)
    to_onnx(chain_graph(Model()), cpu)
    once, other = len(seen), Model()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    graph = chain_graph(other)
    assert_same(graph, to_onnx(graph, cpu), tmp_path)
    assert len(seen) == once
    monkeypatch.setattr(onnx_export, "RECENT", once - 1)
    to_onnx(graph, cpu)
    assert len(seen) == 2 * once, "links beyond a number of them are forgotten"


def test_profiles_that_differ_in_precision_translate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    model, linear, other = Model(), nn.Linear(4, 4), nn.Linear(4, 4)
    known = Translated()
    for make in (lambda: chain_graph(model), lambda: whole_graph(linear)):
        first = ir.to_proto(to_onnx(make(), cpu, known)).SerializeToString()
        once = len(seen)
        assert ir.to_proto(to_onnx(make(), cpu_int4, known)).SerializeToString() == first
        assert len(seen) == once
        to_onnx(make(), openvino, known)
        assert len(seen) > once, "it writes some operators in another form"
    weights = [np.array(v.const_value) for v in to_onnx(whole_graph(other), cpu, known).graph.initializers.values()]
    wanted = other.weight.detach().numpy()
    assert any(np.array_equal(found, wanted) or np.array_equal(found, wanted.T) for found in weights)
