"""``xarch new run`` writes a file that can be used as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.cli_process import RUN, STACK, Xarch


@pytest.fixture
def recipe(site: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack conversion as a packaged recipe."""
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "given.py").write_text(
        "from xarch import hookimpl\n@hookimpl\n"
        "def xarch_register(registry): registry.recipe('stacked', load=f'{__name__}:stacked.yaml')\n"
    )
    (folder / "stacked.yaml").write_text(RUN)
    monkeypatch.setenv("XARCH_PLUGIN_FILES", f"{STACK}:{folder / 'given.py'}")


def test_a_new_configuration_plans_like_its_recipe(recipe: None, here: Xarch, tmp_path: Path) -> None:
    written = here("new", "run", "stacked", "--out", "work", "--seed", "5", "--json")
    assert written.code == 0, written.err
    assert written.document["file"] == "work/run.yaml"
    assert written.document["next"][0] == "xarch plan work/run.yaml"
    text = (tmp_path / "work" / "run.yaml").read_text()
    assert "# peak learning rate\n" in text
    planned = here("plan", "work/run.yaml", "--json")
    assert planned.code == 0, planned.err
    original = here("plan", "stacked", "--seed", "5", "--json").document
    assert planned.document["config"] == original["config"]
    assert [s["matches"] for s in planned.document["stages"]] == [s["matches"] for s in original["stages"]]
    assert planned.document["provenance"]["seed"].startswith("run.yaml:")


def test_nothing_is_overwritten_unasked(here: Xarch, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("mine")
    refused = here("new", "run")
    assert refused.code == 2
    assert "run.yaml exists" in refused.err
    assert (tmp_path / "run.yaml").read_text() == "mine"
    assert here("new", "run", "--file", "other.yaml").code == 0
    assert here("new", "run", "--force").code == 0
    assert "# SCHEME:REF" in (tmp_path / "run.yaml").read_text()
