"""Who may say what an export has to compute: the student, and nobody else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.export.export_models import PlainStudent, PlainTarget
from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph, ParityCase, Profile
from xarch.contracts.model import TapModel
from xarch.errors import ParityError, PlanError
from xarch.export.profiles import cpu
from xarch.export.run import ExportResult, export_profile

CLASSES = 3


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class Changed(nn.Module):
    """The classifier with something done before and after it."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.after(self.net(self.before(images))),)


def same(x: Tensor) -> Tensor:
    return x


LIES = {
    "liar": (lambda x: (x - 0.5) / 0.5, lambda y: y.flip(-1) + 1),
    "adds 1": (same, lambda y: y + 1),
    "other normalisation": (lambda x: (x - 0.5) / 0.5, same),
    "classes reversed": (same, lambda y: y.flip(-1)),
    "fits the first sample alone": (same, lambda y: y[:1].expand(y.shape)),
}


@pytest.fixture
def student() -> PlainStudent:
    return PlainStudent(Classifier().eval(), ["images"], {"logits": "BK"})


def images(batches: int = 3, size: int = 2) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.rand(size, 1, 8, 8, generator=generator) for _ in range(batches)]
    return [Batch({"images": x, "labels": torch.zeros(size), "images@teacher": x + 1}, size) for x in made]


def graph(module: nn.Module, **changes: Any) -> ExportGraph:
    declared: dict[str, Any] = {
        "dynamic": {"images": {0: "batch"}},
        "reads": {"images": "images"},
        "gives": {"logits": "logits"},
        "top1": "logits",
    }
    return ExportGraph("model", module, {"images": torch.rand(2, 1, 8, 8)}, ["logits"], **(declared | changes))


def export(
    student: PlainStudent,
    target: PlainTarget,
    out: Path,
    batches: Sequence[Batch] | None = None,
    profile: Profile = cpu,
    **more: Any,
) -> ExportResult:
    data = images() if batches is None else batches
    return export_profile(
        student, target, profile, options={}, batches=data, out=out, metadata={}, say=lambda line: None, **more
    )


class OwnCases(PlainTarget):
    """Compares the file with the graph's own module, as a gate's subject would like to."""

    def parity_cases(self, student: Any, graphs: Any, batches: Any, profile: Profile) -> Iterable[ParityCase]:
        for made in graphs:
            given = {"images": made.inputs["images"].numpy()}
            expected = {"logits": made.module(made.inputs["images"])[0].numpy()}
            yield ParityCase(made.name, {"batch": 2}, partial(_call, given), expected)


def _call(given: dict[str, np.ndarray], call: Any) -> dict[str, np.ndarray]:
    return call("model", given)


@pytest.mark.parametrize("lie", LIES)
def test_a_graph_that_is_not_the_student_is_rejected(lie: str, student: PlainStudent, tmp_path: Path) -> None:
    """vision 2.1 and its section 5, `graph that adds 1`: with the author's own cases these passed."""
    target = OwnCases(graph(Changed(student.module, *LIES[lie])))
    with pytest.raises(ParityError, match="does not reproduce the student"):
        export(student, target, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx.rejected").is_file()
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_the_student_itself_passes_at_several_sizes(student: PlainStudent, tmp_path: Path) -> None:
    result = export(student, PlainTarget(graph(Changed(student.module, same, same))), tmp_path / "out")
    entry = result.parity["graphs"]["model"]
    assert entry["samples"] == [1, 2, 5, 6]
    assert {case["shape"]["batch"] for case in entry["cases"]} == {1, 2, 5, 6}
    assert entry["proof"] == {"logits": {"tap": "logits", "by": "held-out batches"}}
    assert entry["top1_agreement"] == 1.0
    assert result.parity == json.loads((tmp_path / "out" / "parity.json").read_text())


@pytest.mark.parametrize("undeclared", ["reads", "gives"])
def test_an_undeclared_graph_is_proven_by_nothing(undeclared: str, student: PlainStudent, tmp_path: Path) -> None:
    target = OwnCases(graph(Changed(student.module, same, same), **{undeclared: {}}))
    with pytest.raises(ParityError, match="the export has not been compared with the student: graph 'model'") as caught:
        export(student, target, tmp_path / "out")
    assert caught.value.exit_code == 6
    assert "reads={INPUT: BATCH KEY}" in (caught.value.hint or "")
    assert (tmp_path / "out" / "model.onnx.rejected").is_file()


def test_what_held_out_data_lack_is_said(student: PlainStudent, tmp_path: Path) -> None:
    target = PlainTarget(graph(Changed(student.module, same, same), reads={"images": "pixels"}))
    with pytest.raises(ParityError, match=r"none \(held-out batches have no pixels\)"):
        export(student, target, tmp_path / "out")
    with pytest.raises(ParityError, match="no held-out data"):
        export(student, target, tmp_path / "out", batches=[])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gives": {"logits": "logit"}}, "'logit', which is not a tap of the student"),
        ({"gives": {"scores": "logits"}}, r"gives \['scores'\], which is not among \['logits'\]"),
        ({"reads": {"image": "images"}}, r"reads \['image'\], which is not among \['images'\]"),
        ({"variant": "half"}, "the variant 'half'; the student's variants are none"),
    ],
)
def test_wrong_declarations_are_named(
    changes: dict[str, Any], message: str, student: PlainStudent, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=message):
        export(student, PlainTarget(graph(Changed(student.module, same, same), **changes)), tmp_path / "out")


def test_a_static_graph_gets_its_own_size(student: PlainStudent, tmp_path: Path) -> None:
    static = graph(Changed(student.module, same, same), dynamic={})
    entry = export(student, PlainTarget(static), tmp_path / "out").parity["graphs"]["model"]
    assert entry["samples"] == [2]
    assert len(entry["cases"]) == 2 * 3
    larger = replace(static, inputs={"images": torch.rand(9, 1, 8, 8)})
    again = export(student, PlainTarget(larger), tmp_path / "out").parity["graphs"]["model"]
    assert again["samples"] == [9], "six samples fill nine rows"


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x.cumsum(1) if mask is None else (x * mask).cumsum(1)


class MaskedStudent(PlainStudent):
    def run(self, batch: Batch, wanted: Any, sink: Any) -> None:
        sink("y", self.module(batch["x"], batch.get("mask")))


def test_the_student_reads_what_the_graph_reads(tmp_path: Path) -> None:
    """Keys that the graph has no input for (a mask, document borders) reach neither side; those it needs are named."""
    data = [Batch({"x": torch.rand(2, 9), "mask": torch.zeros(2, 9)}, 2)]
    inputs, free = {"x": torch.rand(2, 4)}, {"x": {0: "batch", 1: "length"}}
    made = ExportGraph("g", Masked(), inputs, ["y"], free, reads={"x": "x"}, gives={"y": "y"})
    student = MaskedStudent(Masked(), ["x"], {"y": "BL"})
    entry = export(student, PlainTarget(made), tmp_path / "out", data).parity["graphs"]["g"]
    assert {case["shape"]["length"] for case in entry["cases"]} == {9, 3}, "and an odd shorter length"
    strict = PlainStudent(Masked(), ["x", "mask"], {"y": "BL"})
    with pytest.raises(PlanError, match="the student also reads 'mask'"):
        export(strict, PlainTarget(made), tmp_path / "out", data)


class Tinted(nn.Module):
    def forward(self, x: Tensor, tint: Tensor, gain: Tensor) -> Tensor:
        return (x + tint) * gain


def test_inputs_that_samples_share_and_inputs_that_stay(tmp_path: Path) -> None:
    """A tint a call belongs to all its samples, so samples of another tint are not mixed in; the gain is an example."""
    tint = torch.tensor([[1.0, 2], [1, 2], [5, 5], [1, 2]])
    data = [Batch({"x": torch.rand(4, 2), "tint": tint}, 4)]
    student = PlainStudent(Tinted(), ["x", "tint"], {"y": "BC"})
    student.run = lambda batch, wanted, sink: sink("y", (batch["x"] + batch["tint"]) * 3)  # type: ignore[method-assign]
    inputs = {"x": torch.rand(3, 2), "tint": torch.zeros(2), "gain": torch.tensor([3.0])}
    made = ExportGraph(
        "g", Tinted(), inputs, ["y"], {"x": {0: "rows"}}, reads={"x": "x", "tint": "tint"}, gives={"y": "y"}
    )
    assert export(student, PlainTarget(made), tmp_path / "out", data).parity["graphs"]["g"]["samples"] == [1, 2, 5]


@dataclass
class Factors:
    """A value that is kept in two parts."""

    a: Tensor
    b: Tensor

    def full(self) -> Tensor:
        return self.a @ self.b


def test_structured_values_are_compared_in_full(student: PlainStudent, tmp_path: Path) -> None:
    linear = student.module.net[-1]  # type: ignore[union-attr,index]

    def factored(batch: Batch, wanted: Any, sink: Any) -> None:
        hidden = student.module.net[:-1](batch["images"])  # type: ignore[union-attr,index]
        weight = torch.cat([linear.weight, linear.bias[:, None]], 1)
        sink("logits", Factors(torch.cat([hidden, torch.ones(len(hidden), 1)], 1), weight.T))

    student.run = factored  # type: ignore[method-assign]
    assert export(student, PlainTarget(graph(Changed(student.module, same, same))), tmp_path / "out").parity["passed"]
    student.run = lambda batch, wanted, sink: sink("logits", object())  # type: ignore[method-assign]
    with pytest.raises(PlanError, match=r"'logits' is a object without full\(\)"):
        export(student, PlainTarget(graph(Changed(student.module, same, same))), tmp_path / "out")


class Halves(PlainStudent):
    """Has an operating point of half the logits."""

    def variants(self) -> Mapping[str, TapModel]:
        return {"half": PlainStudent(Changed(self.module, same, lambda y: y / 2), ["images"], {"logits": "BK"})}


def test_a_graph_of_a_variant_is_compared_with_that_variant(tmp_path: Path) -> None:
    student = Halves(Classifier().eval(), ["images"], {"logits": "BK"})
    half = graph(Changed(student.module, same, lambda y: y / 2))
    assert export(student, PlainTarget(replace(half, variant="half")), tmp_path / "out").parity["passed"]
    with pytest.raises(ParityError):
        export(student, PlainTarget(half), tmp_path / "out")


class Steps(PlainTarget):
    """A running sum one step at a time; the cases loop over it."""

    def __init__(self, made: ExportGraph, **changes: Any) -> None:
        super().__init__(made)
        self.changes = changes

    def parity_cases(self, student: Any, graphs: Any, batches: Any, profile: Profile) -> Iterable[ParityCase]:
        x = batches[0]["x"][:1]

        def drive(call: Any) -> dict[str, np.ndarray]:
            total, seen = np.zeros((1,), np.float32), []
            for t in range(x.shape[1]):
                out = call("step", {"x": x[:, t].numpy(), "total": total})
                total = out["present"]
                seen.append(out["y"][:, None])
            return {"y": np.concatenate(seen, 1)[:, 1::2], "present": total}

        own = {"present": x.sum(1).numpy()}
        case = ParityCase("step", {"tokens": x.shape[1]}, drive, own, batch=Batch({"x": x}, 1), taps={"y": "y"})
        yield replace(case, **{"positions": {"y": (1, range(1, x.shape[1], 2))}, **self.changes})


class Step(nn.Module):
    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = off

    def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = total + x
        return total + self.off, total


def steps(off: float) -> ExportGraph:
    inputs = {"x": torch.ones(1), "total": torch.zeros(1)}
    return ExportGraph("step", Step(off), inputs, ["y", "present"])


def test_a_loop_is_proven_by_a_case_with_taps(tmp_path: Path) -> None:
    data = [Batch({"x": torch.rand(2, 64)}, 2)]
    student = PlainStudent(Masked(), ["x"], {"y": "BL"})
    entry = export(student, Steps(steps(0)), tmp_path / "out", data).parity["graphs"]["step"]
    assert entry["proof"] == {"y": {"tap": "y", "by": "a case"}}
    with pytest.raises(ParityError, match="'y': rel_l2"):
        export(student, Steps(steps(0.01)), tmp_path / "out", data)
    for changes, message in (
        ({"batch": None}, "names taps but has no batch"),
        ({"expected": {"y": np.zeros(1)}}, r"lists \['y'\] both as taps and as expected values"),
        ({"graph": "other"}, "names the graph 'other'"),
    ):
        with pytest.raises(PlanError, match=message):
            export(student, Steps(steps(0), **changes), tmp_path / "out", data)


def test_no_places_prove_nothing(tmp_path: Path) -> None:
    data = [Batch({"x": torch.rand(2, 8)}, 2)]
    student = PlainStudent(Masked(), ["x"], {"y": "BL"})
    target = Steps(
        steps(7),
        positions={"y": (1, [])},
        drive=lambda call: {
            "y": call("step", {"x": np.ones(1, np.float32), "total": np.zeros(1, np.float32)})["y"][:, None][:, :0],
            "present": data[0]["x"][:1].sum(1).numpy(),
        },
    )
    with pytest.raises(ParityError, match="the export has not been compared with the student"):
        export(student, target, tmp_path / "out", data)


def test_code_of_the_author_runs_under_their_name(student: PlainStudent, tmp_path: Path) -> None:
    """house A5: export_graphs, parity_cases, drives and measures belong to whoever wrote them."""
    seen: list[str] = []

    @contextmanager
    def blame(during: str) -> Iterator[None]:
        try:
            yield
        except ZeroDivisionError:
            seen.append(during)
            raise

    def raises(*_: Any) -> Any:
        raise ZeroDivisionError

    class Generator(PlainTarget):
        def parity_cases(self, *_: Any) -> Iterable[ParityCase]:
            yield ParityCase("model", {}, lambda call: {}, {})
            raise ZeroDivisionError

    class Driver(PlainTarget):
        def parity_cases(self, *_: Any) -> Iterable[ParityCase]:
            yield ParityCase("model", {}, raises, {})

    made = graph(Changed(student.module, same, same))
    for target, during in ((Generator(made), "parity_cases"), (Driver(made), "drive")):
        with pytest.raises(ZeroDivisionError):
            export(student, target, tmp_path / "out", blame=blame)
        assert seen.pop() == during
    student.run = raises  # type: ignore[method-assign]
    guard: Callable[[str], AbstractContextManager[None]] = blame
    with pytest.raises(ZeroDivisionError):
        export(student, PlainTarget(made), tmp_path / "out", blame=guard)
    assert seen == ["the student's taps"]
