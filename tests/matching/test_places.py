"""Places: a method names what it needs, a family says what that is called."""

from __future__ import annotations

from xarch.config.schema import Stage
from xarch.matching.places import at_places

DECODER = {"logits": "logits", "hidden": "blocks.{}.output", "labels": "batch:input_ids"}
IMAGE = {"logits": "classifier", "hidden": "features.{}", "labels": "batch:labels"}


def stage(scope: str = "global", **match: object) -> Stage:
    return Stage.model_validate({"scope": scope, "matches": {"m": {"objective": "mse", **match}}})


def resolved(found: Stage) -> tuple[object, object, object]:
    match = found.matches["m"]
    return match.student, match.teacher, match.aux


def test_each_side_is_named_by_its_own_family() -> None:
    found = at_places(stage(student="hidden", teacher="hidden", aux={"z": "logits"}), DECODER, {"": IMAGE})
    assert resolved(found) == ("blocks.{j}.output", "features.{i}", {"z": "classifier"})


def test_labels_are_those_of_the_students_batch() -> None:
    for teachers in ({}, {"": IMAGE}):
        found = at_places(stage(student="logits", teacher="labels"), DECODER, teachers)
        assert resolved(found) == ("logits", "batch:input_ids", {})


def test_models_in_front_keep_their_place() -> None:
    teachers = {"": IMAGE, "big": DECODER}
    for text, want in (
        ("big:hidden", "big:blocks.{i}.output"),
        ("random:hidden", "random:features.{i}"),
        ("*:hidden", "*:blocks.{i}.output"),
        ("ema:hidden", "ema:blocks.{j}.output"),
        ("student:logits", "student:logits"),
        ("batch:hidden", "batch:hidden"),
        ("same", "same"),
        ("features.3", "features.3"),
    ):
        assert resolved(at_places(stage(student=["hidden", "x.*"], teacher=text), DECODER, teachers)) == (
            ["blocks.{j}.output", "x.*"],
            want,
            {},
        )
    assert at_places(stage(student="logits", teacher=None), DECODER, teachers).matches["m"].teacher is None


def test_sites_have_names_of_their_own() -> None:
    given = stage("local", student="hidden", teacher="hidden")
    assert at_places(given, DECODER, {"": IMAGE}) == given
