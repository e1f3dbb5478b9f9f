"""The author's guide is short, and what it shows is what xarch takes."""

from __future__ import annotations

import re
from pathlib import Path

from xarch import testing
from xarch.config.method import Method
from xarch.config.schema import Stage
from xarch.config.study import load_study
from xarch.config.yaml_text import parse_yaml
from xarch.registry.declare import Declarations

TEXT = (Path(__file__).parents[2] / "plugins" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150


def test_its_method_and_its_study_are_valid() -> None:
    method, study = (parse_yaml(block, "plugins/README.md").data for block in BLOCKS)
    Method.model_validate(method["method"])
    assert [Stage.model_validate(stage).batch.size for stage in method["stages"].values()] == [100]
    assert load_study(study)[0].control == "no-teacher"


def test_it_names_every_kind_and_every_conformance_class() -> None:
    calls = [name for name in vars(Declarations) if not name.startswith("_")]
    assert not [name for name in calls if not re.search(rf"[`.]{name}`", TEXT)]
    assert not [name for name in testing.__all__ if name not in TEXT]
