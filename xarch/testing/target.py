"""Conformance of target adapters: checks everything a conversion relies on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.local import LocalStudent, sites_of
from xarch.contracts.model import Student, Teacher
from xarch.planning.feasibility import account_for
from xarch.planning.resolve import resolve_target
from xarch.registry.declare import ANY_FAMILY
from xarch.registry.loader import get_registry
from xarch.testing.checks import assert_light_registration, assert_taps
from xarch.testing.models import family_named, family_of, load_teacher, student_family, tiny_configuration


class TargetConformance:
    """Subclass it with ``adapter = "NAME"``.

    Class attributes:
        adapter: the target's name, or ``plugin:name``.
        options: its options for the test teacher.
        decisions: decisions of earlier stages, for targets that need them.
        local: whether the student has sites; False for families whose stages are all global.
        family: family of the test teacher; by default the first one that the target accepts.
    """

    adapter: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    decisions: ClassVar[Mapping[str, Any]] = {}
    local: ClassVar[bool] = True
    family: ClassVar[str] = ""

    def make_teacher(self, folder: Path) -> str:
        """Reference of a small teacher written into ``folder``; by default its family's."""
        return family_named(self._family()).tiny_teacher(folder)

    def batch(self, facts: Any) -> Batch:
        """Input for a model with these facts; by default the example of its family."""
        return family_of(facts).example_batch(facts)

    def configuration(self, folder: Path) -> dict[str, Any]:
        """Values of a tiny conversion, dotted keys; the data are those of the student's family."""
        made = {**tiny_configuration(self._family(), folder), "teacher": self.make_teacher(folder)}
        spec = get_registry().get("target", self.adapter)
        if spec.produces not in ("", ANY_FAMILY, self._family()):
            made |= student_family(spec).tiny_run(folder)
        return {**made, "student.target": self.adapter, "student.options": dict(self.options)}

    def _family(self) -> str:
        return self.family or get_registry().get("target", self.adapter).accepts[0]

    @pytest.fixture
    def target(self) -> Any:
        """The resolved adapter."""
        assert self.adapter, f"{type(self).__name__} needs `adapter`"
        return resolve_target(get_registry(), self.adapter, self.options)

    @pytest.fixture
    def teacher(self, tmp_path: Path) -> Teacher:
        """A small teacher."""
        return load_teacher(self.make_teacher(tmp_path))

    @pytest.fixture
    def student(self, target: Any, teacher: Teacher) -> Student:
        """A student right after its initialisation."""
        torch.manual_seed(0)
        made: Student = target.adapter.build(teacher.facts, target.options, self.decisions, device=torch.device("cpu"))
        target.adapter.initialise(made, teacher)
        made.module.eval().requires_grad_(False)
        return made

    def test_registration_is_light(self) -> None:
        assert_light_registration()

    def test_builds_on_the_meta_device(self, target: Any, teacher: Teacher) -> None:
        made = target.adapter.build(teacher.facts, target.options, self.decisions, device=torch.device("meta"))
        assert all(t.device.type == "meta" for t in made.module.state_dict().values())
        initialisation = target.adapter.initialisation(teacher.facts, made)
        named = [*initialisation.copied, *initialisation.mapped, *initialisation.new]
        assert sorted(named) == sorted(set(named)), "a tensor is named twice"
        assert set(named) >= {n for n, _ in made.module.named_parameters()}, "a parameter is not accounted for"

    def test_initialisation_does_what_was_planned(self, target: Any, teacher: Teacher) -> None:
        made = target.adapter.build(teacher.facts, target.options, self.decisions, device=torch.device("cpu"))
        planned, done = target.adapter.initialisation(teacher.facts, made), target.adapter.initialise(made, teacher)
        assert set(planned.copied) <= set(done.copied)
        assert set(planned.mapped) <= set(done.mapped)
        assert all(bool(torch.isfinite(p).all()) for p in made.module.parameters())

    def test_no_tensor_of_the_teacher_is_dropped_in_silence(self, target: Any, teacher: Teacher) -> None:
        made = target.adapter.build(teacher.facts, target.options, self.decisions, device=torch.device("cpu"))
        account_for(target.adapter.initialise(made, teacher), list(teacher.weights()))

    def test_taps_are_as_declared(self, student: Student, teacher: Teacher) -> None:
        assert_taps(student, self.batch(student.facts))

    def test_sites_read_teacher_taps_that_exist(self, target: Any, student: Student, teacher: Teacher) -> None:
        sites = sites_of(student)
        assert bool(sites) == self.local, "local stages train sites; set `local` accordingly"
        known = set(target.adapter.view(teacher).taps())
        assert known == set(target.adapter.view_taps(teacher.facts, target.options, teacher.taps()))
        for site in sites.values():
            assert set(site.inputs.values()) <= known
            assert any(site.owns(n) for n, _ in student.module.named_parameters()), f"{site.name} owns no parameter"
        assert set(student.counterparts().values()) <= known

    def test_the_view_of_the_teacher_is_as_declared(self, target: Any, student: Student, teacher: Teacher) -> None:
        viewed = target.adapter.view(teacher)
        if viewed is not teacher:
            assert_taps(viewed, self.batch(student.facts).seen_by("teacher"))

    def test_a_site_trains_only_itself(self, target: Any, student: Student, teacher: Teacher) -> None:
        batch = self.batch(teacher.facts)
        if not isinstance(student, LocalStudent):
            pytest.skip("this family has no sites; its stages are global")
        name, site = next(iter(student.sites().items()))
        inputs = target.adapter.view(teacher).collect(batch, set(site.inputs.values()))
        student.module.requires_grad_(True)
        local = {k: t for k, t in site.taps.items() if t.dense}
        given = {k: inputs[v] for k, v in site.inputs.items()}
        values = student.run_site(name, given, set(local), batch)
        torch.stack([v.float().square().mean() for v in values.values() if isinstance(v, Tensor)]).sum().backward()
        touched = {n for n, p in student.module.named_parameters() if p.grad is not None and bool(p.grad.any())}
        assert touched, "no parameter of the site has a gradient"
        assert all(site.owns(n) for n in touched), f"{name} also trains {sorted(touched)[:3]}"

    def test_groups_name_real_parameters(self, student: Student) -> None:
        known = {n for n, _ in student.module.named_parameters()}
        for group, names in student.param_groups().items():
            assert set(names) <= known, f"group {group!r} names unknown parameters"

    def test_state_dict_round_trip(self, target: Any, student: Student, teacher: Teacher) -> None:
        again = target.adapter.build(teacher.facts, target.options, self.decisions, device=torch.device("cpu"))
        again.module.load_state_dict(student.module.state_dict(), strict=True)
        again.module.eval()
        batch = self.batch(student.facts)
        names = {n for n, t in student.taps().items() if t.dense}
        with torch.no_grad():
            one, two = student.collect(batch, names), again.collect(batch, names)
        assert all(torch.equal(one[n], two[n]) for n in names)

    def test_tiny_conversion_to_verified_onnx(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A whole conversion with the default recipe: plan, stages, reload, evaluation, export and parity gate."""
        from xarch.api import convert
        from xarch.files.bounded_json import read_json

        monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
        run = convert(overrides=self.configuration(tmp_path), out=tmp_path / "run")
        assert run.status["state"] == "done"
        parity = read_json(run.path / "export" / "cpu" / "parity.json")
        assert parity["passed"] is True
        assert parity["graphs"]
        rival = run.path / "bench" / "teacher" / "cpu" / "absent.json"
        absent = read_json(rival)["reason"] if rival.exists() else ""
        assert "does not reproduce" not in absent, f"the teacher's graphs, which the bench compares with: {absent}"
