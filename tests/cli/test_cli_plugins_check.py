"""``xarch plugins check`` finds what is wrong with a plugin without being harmed by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry.fake_dist import Site, registering
from xarch.registry.check import Report, check_plugin


def findings(report: Report) -> dict[str, tuple[bool, str]]:
    return {f.check: (f.ok, f.detail) for f in report.findings}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import time; time.sleep(60)", "did not finish within 1.5 s"),
        ("import os; os._exit(9)", "ended with code 9"),
        ("raise OSError('disk')", "failed: OSError: disk"),
        ("x = 1", "has no hooks"),
    ],
)
def test_plugins_that_do_not_load(site: Site, code: str, why: str) -> None:
    site.install("xarch-bad", "bad", code)
    ok, detail = findings(check_plugin("bad", timeout=1.5 if "sleep" in code else 60))["loads"]
    assert not ok
    assert why in detail


@pytest.mark.slow
def test_every_declaration_is_resolved_and_typed(site: Site) -> None:
    site.module("json_like", "VALUE = 3\n")
    body = """
        print("hello there")
        registry.stage("absent", load="nowhere:X")
        registry.stage("wrong", load="json:JSONDecoder")
        registry.objective("abstract", load="xarch.contracts.objective:Objective")
        registry.export("number", load="json_like:VALUE")
        registry.recipe("gone", load="bad:gone.yaml")
        registry.recipe("list", load="bad:list.yaml")
        registry.teacher("t", ref="nothing")
        registry.target("later", load="m:a", accepts=["x"], needs=["not_here"])
        registry.stage("future", load="m:a", api=9)
        registry.stage("fine", load="xarch.engine.closed_form:ClosedForm")
    """
    site.install("xarch-bad", "bad", registering(body))
    (site.folder / "list.yaml").write_text("- 1\n")
    report = check_plugin("bad", timeout=60)
    found = findings(report)
    assert not report.ok
    assert found["no output at registration"] == (False, "prints 'hello there'")
    assert "No module named 'nowhere'" in found["stage absent"][1]
    assert found["stage wrong"] == (False, "JSONDecoder is not a subclass of StageKind")
    assert found["objective abstract"] == (False, "does not implement forward")
    assert found["export number"] == (False, "int is not a Profile")
    assert "No such file" in found["recipe gone"][1]
    assert found["recipe list"] == (False, "the top level must be a mapping")
    assert found["teacher t"] == (False, "ref should be SCHEME:REF")
    assert found["target later"][0]
    assert "not checked: needs not_here" in found["target later"][1]
    assert "plugin API 9" in found["stage future"][1]
    assert found["stage fine"][0]


@pytest.mark.slow
def test_heavy_imports_are_a_finding(site: Site, tmp_path: Path) -> None:
    heavy = "import torch\nfrom xarch import hookimpl\n@hookimpl\ndef xarch_register(registry): pass\n"
    (tmp_path / "heavy.py").write_text(heavy)
    ok, detail = findings(check_plugin("heavy.py", timeout=60))["no heavy import at registration"]
    assert not ok
    assert "torch" in detail


def test_the_core_passes(site: Site) -> None:
    report = check_plugin("core", timeout=60)
    assert report.ok, [f for f in report.findings if not f.ok]
    assert len(report.findings) > 10


def test_a_disabled_plugin_can_be_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("xarch-off", "off", registering("pass"))
    monkeypatch.setenv("XARCH_DISABLE_PLUGINS", "all")
    assert check_plugin("off", timeout=60).ok
