"""The doctor reports what is there, and survives what is broken."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from tests.registry.fake_dist import Site
from xarch.cli import machine
from xarch.cli.app import cli


def test_every_part_answers(site: Site) -> None:
    import torch

    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    )
    assert found["devices"][0]["device"] == "cpu"
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert {"ssd", "matrix_distance"} <= {k["op"] for k in found["kernels"]}
    assert set(found["compiler"]) == {"C++", "cache folder", "cached libraries"}
    assert {p["plugin"]: p["state"] for p in found["plugins"]}["core"] == "ok"
    assert any(str(site.folder.parent / "home") in f["path"] for f in found["folders"])
    human = CliRunner().invoke(cli, ["doctor"])
    assert "torch" in human.output


def test_a_broken_part_does_not_hide_the_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert "ModuleNotFoundError" in found["onnxruntime"]["failed"]
    assert found["versions"]["xarch"]


def test_stale_entry_points_are_noticed(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = {"core": "xarch.builtin", "brand-new": "xarch_brand_new"}
    monkeypatch.setattr(machine, "_declared", lambda path: declared)
    assert "brand-new" in machine.installation()["plugins"]
    assert "pip install -e" in machine.installation()["plugins"]
