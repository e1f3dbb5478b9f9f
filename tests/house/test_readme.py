"""What the README shows is what xarch takes."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from xarch.config.schema import RunConfig
from xarch.registry.loader import get_registry

TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_method_in_the_readme_is_one() -> None:
    block = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None
    tree = yaml.safe_load(block[1])
    head = tree.pop("method")
    assert head.keys() == {"title", "paper", "families", "control"}
    stage = RunConfig.model_validate(tree).stages["distil"]
    registry = get_registry()
    for match in stage.matches.values():
        registry.get("objective", match.objective)
        if match.through is not None:
            registry.get("connector", match.through.connector)
    registry.get("method", head["control"])


def test_the_readme_is_short() -> None:
    assert len(TEXT.splitlines()) <= 160
