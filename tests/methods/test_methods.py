"""Every registered method, on every family it serves: its head is true, it plans, and two steps of every stage run.

A new method needs no test of its own to be in here. Exports are tested once per family and target, by the targets' own
conformance tests. A method costs one to two CPU seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.acm.acm_models import tiny_vit
from xarch.config.load import load_config
from xarch.registry.loader import get_registry
from xarch.testing.method import assert_head, assert_runs, families_of
from xarch.testing.models import tiny_conversion

TARGETS: dict[str, dict[str, Any]] = {
    "decoder": {"student.target": "dm2"},
    "encdec": {"student.target": "encdec"},
    "speech": {"student.target": "whisper"},
    "radiance-field": {"student.target": "hash"},
    "image": {
        "student.target": "timm",
        "student.options.model": "deit_tiny_distilled_patch16_224",
        "student.options.arguments": {"patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 2},
        "student.options.size": 32,
    },
}
"""Family -> the target that stands for it where a method names none."""
TEACHERS: dict[tuple[str, str], Callable[[Path], str]] = {("acm", "image"): tiny_vit}
"""Method and family -> its teacher, where the family's has none of the modules that the method changes."""
OWN = {plugin.name for plugin in get_registry().plugins() if plugin.distribution == "xarch"}
METHODS = [spec.name for spec in get_registry().specs("method") if spec.plugin in OWN]
FAMILIES = {spec.name for spec in get_registry().specs("family") if spec.plugin in OWN}
SERVED = {method: [family for family in families_of(method) if family in FAMILIES] for method in METHODS}
QUICK = ("kd-decoder", "mohawk-decoder", "ofa-kd-image", "pvd-radiance-field", "encdec-encdec", "distil-whisper-speech")
PAIRS = [
    pytest.param(
        method, family, id=f"{method}-{family}", marks=[] if f"{method}-{family}" in QUICK else pytest.mark.slow
    )
    for method, families in SERVED.items()
    for family in families
]
"""A method of each family; in the slow set every method on every family that it serves."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Family -> teacher, data and target, made once."""
    made: dict[str, dict[str, Any]] = {}

    def of(family: str) -> dict[str, Any]:
        if family not in made:
            assert family in TARGETS, f"name a small target of family {family!r} in TARGETS"
            folder = tmp_path_factory.mktemp(family)
            made[family] = {**tiny_conversion(family, folder), **TARGETS[family]}
        return made[family]

    return of


def settings_of(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, without their target if the method has one of its own."""
    own = load_config(method).config.student.target
    return {key: value for key, value in settings.items() if not (own and key.startswith("student."))}


@pytest.mark.parametrize("method", METHODS)
def test_its_head_is_true(method: str) -> None:
    assert_head(method)


@pytest.mark.parametrize(("method", "family"), PAIRS)
def test_it_runs(method: str, family: str, start: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    settings = settings_of(method, start(family))
    if (method, family) in TEACHERS:
        settings["teacher"] = TEACHERS[method, family](tmp_path)
    assert_runs(method, settings, tmp_path / "run")
