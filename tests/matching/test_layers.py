"""Layers by number in tap names."""

from __future__ import annotations

import pytest

from xarch.errors import PlanError
from xarch.matching.layers import expand, first_layer, pair_layers, place_of

NAMES = [f"stages.{s}.blocks.{b}.output" for s in range(2) for b in range(3)] + ["logits", "head.10"]


def test_placeholders_are_the_number_wherever_they_stand() -> None:
    found = expand("stages.1.blocks.{j}.output", NAMES)
    assert [(f.layer, f.place) for f in found] == [(b, "stages.1.blocks.{j}.output") for b in range(3)]
    assert [f.name for f in expand("stages.{j}.blocks.{j}.output", NAMES)] == [
        "stages.0.blocks.0.output",
        "stages.1.blocks.1.output",
    ]
    assert [f.name for f in expand("stages.0.blocks.{last}.output", NAMES)] == ["stages.0.blocks.2.output"]
    assert [f.name for f in expand("*", NAMES)] == NAMES
    assert expand("stages.{last}.nothing", NAMES) == []


def test_a_number_counts_layers_only_as_a_whole_part() -> None:
    assert (first_layer("head.10"), first_layer("conv2d.output"), place_of("head.10")) == (10, None, "head.{j}")
    assert [f.layer for f in expand("head.{j}", ["head.10", "head.1x"])] == [10]


@pytest.mark.parametrize(
    ("how", "own", "teacher", "wanted"),
    [
        ("even", 4, 12, {0: 2, 1: 5, 2: 8, 3: 11}),
        ("even", 3, 4, {0: 0, 1: 1, 2: 3}),
        ("even", 4, 2, {1: 0, 3: 1}),
        ("last", 2, 5, {0: 3, 1: 4}),
        (None, 3, 3, {0: 0, 1: 1, 2: 2}),
        ({1: 0}, 2, 1, {1: 0}),
    ],
)
def test_maps(how: object, own: int, teacher: int, wanted: dict[int, int]) -> None:
    assert pair_layers(how, range(own), range(teacher), {}, "m") == wanted  # type: ignore[arg-type]


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(PlanError, match="'last' needs at least as many teacher layers"):
        pair_layers("last", range(4), range(3), {}, "m")
    for own, teacher in ((0, 3), (3, 0)):
        with pytest.raises(PlanError, match="'even' needs layers on both sides"):
            pair_layers("even", range(own), range(teacher), {}, "m")
