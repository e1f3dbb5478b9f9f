"""Conformance of families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from xarch.contracts.family import Facts, Family
from xarch.contracts.model import Teacher
from xarch.planning.resolve import providers
from xarch.registry.loader import get_registry
from xarch.testing.checks import assert_light_registration, assert_taps
from xarch.testing.models import family_named, family_of, load_teacher, tiny_configuration

LABELS = "batch:"


ANY = "*"
"""Layout of a tensor that has several."""


FIRST = ("0", "1")
"""What layers may be counted from."""


class FamilyConformance:
    """Subclass it with ``family = "NAME"``."""

    family: ClassVar[str] = ""

    @pytest.fixture
    def teacher(self, tmp_path: Path) -> Teacher:
        """Return the tiny teacher of the family."""
        return load_teacher(self._family().tiny_teacher(tmp_path))

    def _family(self) -> Family:
        return family_named(self.family)

    def test_registration_is_light(self) -> None:
        assert_light_registration()

    def test_facts_survive_json(self, teacher: Teacher) -> None:
        facts, kind = teacher.facts, self._family().Facts
        assert type(facts) is kind, f"the tiny teacher's facts are {type(facts).__name__}, not {kind.__name__}"
        assert isinstance(facts, Facts), "facts need to_json, from_json, taps, tiny and work"
        assert kind.from_json(json.loads(json.dumps(facts.to_json()))) == facts
        assert family_of(facts) is self._family(), "two families share a facts type"

    def test_facts_describe_a_model(self, teacher: Teacher) -> None:
        taps = teacher.facts.taps()
        assert taps
        assert all(name == tap.name for name, tap in taps.items())
        assert type(teacher.facts.tiny()) is type(teacher.facts)
        assert teacher.facts.tiny().taps()
        assert teacher.facts.work({}) > 0

    def test_the_tiny_teacher_has_its_taps(self, teacher: Teacher) -> None:
        assert teacher.family == self.family
        assert_taps(teacher, self._family().example_batch(teacher.facts))

    def test_the_example_batch_is_as_declared(self, teacher: Teacher) -> None:
        family = self._family()
        one, two = family.example_batch(teacher.facts, seed=1), family.example_batch(teacher.facts, seed=1)
        for key, layout in family.tensors.items():
            name = key.removesuffix("?")
            if name not in one.tensors:
                assert key.endswith("?"), f"the example batch lacks {name!r}"
                continue
            assert layout == ANY or one[name].ndim == len(layout), f"{name}: {tuple(one[name].shape)} is not {layout}"
            assert torch.equal(one[name], two[name]), f"{name} differs between two calls with the same seed"
        strange = set(one.tensors) - {key.removesuffix("?") for key in family.tensors}
        assert not strange, f"the example batch has {sorted(strange)}, which `tensors` does not declare"

    def test_places_are_taps_or_tensors(self, teacher: Teacher, tmp_path: Path) -> None:
        family, taps = self._family(), teacher.facts.taps()
        declared = {key.removesuffix("?") for key in family.tensors} | set(self._data(tmp_path).tensors)
        for place, name in family.places.items():
            if name.startswith(LABELS):
                assert name.removeprefix(LABELS) in declared, f"place {place!r} is not a tensor of its data: {name}"
            else:
                first = [name.replace("{}", number) for number in FIRST]
                assert taps.keys() & set(first), f"place {place!r} is not a tap: {name}"
        assert not family.mask or family.mask in declared

    def test_the_metric_is_registered_for_it(self) -> None:
        metric = self._family().metric
        if metric:
            spec = get_registry().get("metric", metric)
            assert spec.serves(self.family), f"metric {metric!r} does not serve {self.family!r}"

    def test_it_reads_the_data_of_its_tiny_run(self, teacher: Teacher, tmp_path: Path) -> None:
        info = self._data(tmp_path)
        assert self._family().accepts(teacher.facts, info) is None
        for key, layout in self._family().tensors.items():
            name = key.removesuffix("?")
            if name in info.tensors:
                assert layout == ANY or len(info.tensors[name].layout) == len(layout)
            else:
                assert key.endswith("?"), f"the data of its tiny run lack {name!r}"

    def _data(self, folder: Path) -> Any:
        settings = tiny_configuration(self.family, folder / "data")
        opened = providers(get_registry())(settings["data.ref"], settings.get("data.options", {}))
        source = load_teacher(settings["teacher"])
        from dataclasses import replace

        request = replace(opened.request, sample=settings.get("data.sample", {}), facts=source.facts)
        return opened.adapter.describe(request)
