"""Estimates of work: what a plan's times rest on."""

from __future__ import annotations

from dataclasses import replace

from tests.plugins.field.sphere_field import Ball
from xarch_field.facts import FieldFacts
from xarch_field.student import FieldStudent
from xarch_field.taps import OCCUPIED
from xarch_field.teacher import READ_WORK

FACTS = FieldFacts("ball", ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)), samples=100)


class Table(Ball):
    """A ball that reads eight numbers a point."""

    def grid_reads(self) -> int:
        return 8


def test_a_ray_costs_its_samples_in_occupied_cells() -> None:
    student = FieldStudent(Table(), FACTS)
    point, ray = student.work({"kind": "points"}), student.work({"kind": "rays"})
    assert point == 8 * READ_WORK
    assert ray == OCCUPIED * 100 * point
    assert FACTS.work({"kind": "rays"}) == OCCUPIED * 100 * FACTS.work({"kind": "points"})
    assert replace(FACTS, samples=50).work({"kind": "rays"}) == FACTS.work({"kind": "rays"}) / 2
