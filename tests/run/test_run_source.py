"""``run:`` teachers: complete students only, and the refusal comes while planning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.run.stack_case import StackCase
from xarch.api import plan
from xarch.errors import PlanError, UsageError
from xarch.planning.resolve import resolve_target, resolve_teacher
from xarch.registry.loader import get_registry
from xarch.run.run_source import RunSource
from xarch.run.student_io import save_student
from xarch_decoder.testing import tiny_llama, tiny_text


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    """A saved student whose second layer lost its attention."""
    registry = get_registry()
    source = resolve_teacher(registry, tiny_llama(tmp_path / "teacher"), {}, print)
    teacher = source.adapter.load(source.ref, source.options, device=torch.device("cpu"), dtype=torch.float32)
    target = resolve_target(registry, "dm2", {"layers": {"replace": [1]}})
    student = target.adapter.build(teacher.facts, target.options, {}, device=torch.device("cpu"))
    target.adapter.initialise(student, teacher)
    folder = tmp_path / "run" / "student"
    save_student(
        folder,
        student,
        registry,
        target=target,
        built_from={"family": "decoder", "facts": teacher.facts.to_json()},
        decisions={},
        teacher=None,
        teacher_facts=None,
    )
    return folder.parent


def test_a_student_with_replaced_modules_is_refused_while_planning(hybrid: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be a teacher: .* blocks\.1\.matrix"):
        plan(
            overrides={
                "teacher": f"run:{hybrid}",
                "student.target": "dm2",
                "student.options.layers": {"replace": [0]},
                "data.ref": tiny_text(tmp_path / "text.txt"),
                "data.options": {"tokenizer": "bytes"},
            }
        )


def test_a_folder_without_a_student_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no student"):
        RunSource().describe(str(tmp_path), RunSource.Options())


def test_a_run_is_a_teacher_with_its_weights_and_constants_named(stack: StackCase) -> None:
    """encdec W5: chaining was judged by tap names, not by whether the weights are all understood."""
    stack.use(CHAINED)
    run = stack.convert(student__target="first")
    ref = f"run:{run.path}"
    made = stack.plan(teacher=ref, student__target="chained")
    assert made.teacher is not None
    assert (made.teacher.title, made.teacher.parameters) == ("first student of stack:3", 120)
    states = {c.name: (c.state, c.detail) for c in made.checks}
    assert states["teacher's weights"] == ("ok", "all 9 are accounted for")
    with pytest.raises(PlanError, match=r"3 teacher tensors would be dropped: .* layers\.0\.b, layers\.1\.b"):
        stack.plan(teacher=ref, student__target="forgetful")
    again = RunSource().load(str(run.path), RunSource.Options(), device=torch.device("cpu"), dtype=torch.float32)
    assert len(again.fingerprint) == 64
    other = RunSource().random(str(run.path), RunSource.Options(), device=torch.device("cpu"), seed=3)
    assert not torch.equal(other.weights()["layers.0.u"], again.weights()["layers.0.u"])


CHAINED = """
class AsTeacher(stack.StackTeacher):
    def __init__(self, student, ref, fingerprint):
        self.student, self.facts, self.module = student, student.facts, student.module
        self.ref, self.fingerprint = ref, fingerprint
    def run(self, batch, wanted, sink): self.student.run(batch, wanted, sink)

class Student(stack.StackStudent):
    def as_teacher(self, ref, fingerprint, processor): return AsTeacher(self, ref, fingerprint)

class First(stack.LowTarget):
    def build(self, facts, options, decisions, *, device): return Student(facts, device)

class Chained(First):
    def kept(self, student): return tuple(n for n, _ in student.module.named_parameters())
    def initialisation(self, facts, student):
        return xarch.Initialisation(copied=self.kept(student))

class Forgetful(Chained):
    def kept(self, student): return tuple(n for n in super().kept(student) if not n.endswith(".b"))

@hookimpl
def xarch_register(registry):
    registry.target("first", load=f"{__name__}:First", accepts=["stack"])
    registry.target("chained", load=f"{__name__}:Chained", accepts=["stack"])
    registry.target("forgetful", load=f"{__name__}:Forgetful", accepts=["stack"])
"""
