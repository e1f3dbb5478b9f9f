"""Data that are built on other data, and a student with a processor of its own, in one run."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.run.stack_case import StackCase
from xarch.files.header import weights_header
from xarch.planning.describe import family_of
from xarch.registry.loader import get_registry

PLUGIN = """
from dataclasses import replace
from pathlib import Path

seen = []


class Speaks(stack.StackFamily):
    def save_processor(self, processor, folder):
        (folder / "processor.txt").write_text(processor)

    def load_processor(self, folder):
        return (folder / "processor.txt").read_text()


class TiedStudent(stack.StackStudent):
    family = "speaks"


class Tied(stack.LowTarget):
    def build(self, facts, options, decisions, *, device):
        made = super().build(facts, options, decisions, device=device)
        made.module.layers[2].b = made.module.layers[0].b
        made.__class__ = TiedStudent
        return made

    def processor(self, teacher):
        return "the student's own"


class Twice(xarch.DataProvider):
    def describe(self, request):
        return replace(request.provider(request.ref, {}).describe(), title="twice")

    def units_per_sample(self, sample):
        return 4

    def sizes(self, sample):
        return {"L": 4}

    def open(self, request):
        seen.append(dict(request.processors))
        below = request.provider(request.ref, {})
        stream = below.open(split=request.split, samples=request.samples, sample=request.sample, seed=request.seed)
        return Double(stream)


class Double(xarch.BatchStream):
    def __init__(self, below):
        self.below = below

    def __next__(self):
        batch = next(self.below)
        return batch.replace(x=2 * batch["x"])

    def state_dict(self):
        return self.below.state_dict()

    def load_state_dict(self, state):
        self.below.load_state_dict(state)


class Judge(stack.StackMetric):
    def evaluate(self, request):
        seen.append({"metric": request.processor})
        assert max(float(b["x"].abs().max()) for b in request.batches()) > 4
        return super().evaluate(request)


@hookimpl
def xarch_register(registry):
    me = __name__
    registry.family("speaks", load=f"{me}:Speaks")
    registry.target("tied", load=f"{me}:Tied", accepts=["stack"], produces="speaks")
    registry.data("twice", load=f"{me}:Twice")
    registry.metric("judge", load=f"{me}:Judge", accepts=["speaks"])
"""


def test_data_on_data_a_processor_and_tied_weights(stack: StackCase) -> None:
    """encdec W16: data could not be built on data; W17: both sides had the teacher's processor; W18: tied weights were
    stored twice."""
    import sys

    import xarch

    stack.use(PLUGIN)
    run = stack.convert(student__target="tied", data__ref="twice:noise:8", evaluate__metric="judge")
    assert run.status["state"] == "done"
    seen = sys.modules["xarch_plugin_file_own0"].seen
    assert {"teacher": None, "student": "the student's own"} in seen
    assert {"metric": "the student's own"} in seen

    folder = Path(run.path) / "student"
    assert family_of(get_registry(), "speaks").load_processor(folder) == "the student's own"
    stored, loaded = load_file(folder / "model.safetensors"), xarch.load_student(run.path)
    assert "layers.2.b" not in stored
    assert weights_header(folder / "model.safetensors").metadata["layers.2.b"] == "layers.0.b"
    assert loaded.module.layers[2].b is loaded.module.layers[0].b
    assert loaded.module.layers[0].b.tolist() == pytest.approx(stored["layers.0.b"].tolist())
