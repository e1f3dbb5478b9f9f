"""``xarch list``, ``xarch plugins`` and ``xarch inspect`` show what the registry knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.registry.fake_dist import Site, registering
from xarch.cli.app import cli
from xarch.registry.loader import get_registry
from xarch.registry.registry import PLURAL


def call(*arguments: str, code: int = 0) -> Result:
    """Run in this process."""
    get_registry.cache_clear()
    result = CliRunner().invoke(cli, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def document(*arguments: str, code: int = 0) -> Any:
    """The JSON document of a command."""
    return json.loads(call(*arguments, "--json", code=code).stdout)


@pytest.fixture
def shop(site: Site) -> Site:
    """Two families, a target with a recipe, one that lacks an extra, and one that is broken."""
    site.install(
        "xarch-shop",
        "shop",
        registering("""
        registry.family("words", load="m:a")
        registry.family("image", load="m:a")
        registry.source("src", load="m:a", produces="words", summary="a source")
        registry.source("img", load="m:a", produces="image")
        registry.target(
            "good", load="m:a", accepts=["words"], summary="a target", recipes=["z-general", "a-demo"], profiles=["npu"]
        )
        registry.target("needy", load="m:a", accepts=["words"], needs=["not_here"], extra="vision")
        registry.recipe("z-general", load="shop:general.yaml")
        registry.recipe("a-demo", load="shop:demo.yaml")
        registry.teacher("small", ref="src:file", package="p", sha256="0")
    """),
    )
    (site.folder / "general.yaml").write_text(
        "student: {target: good}\nstages:\n"
        "  one: {kind: closed_form}\n  zero: {kind: closed_form, skip: true}\n"
        "  two: {matches: [{student: a, objective: l2}]}\n"
    )
    (site.folder / "demo.yaml").write_text("recipe: z-general\nteacher: zoo:small\n")
    site.install("xarch-broken", "broken", "import nowhere_to_be_found")
    return site


def test_pairs_are_joined_by_family(shop: Site) -> None:
    """encdec W20: "npu … ready" was shown for every target, whatever it exports; now a target
    declares its profiles, and `tests/export/test_pairs_and_profiles.py` builds each of them."""
    pairs = {(p["source"], p["target"]): p for p in document("list", "pairs")["pairs"]}
    assert ("img", "good") not in pairs
    assert ("run", "good") in pairs
    good = pairs["src", "good"]
    assert (good["recipes"], good["stages"], good["status"]) == (["z-general", "a-demo"], ["one", "two"], "ready")
    assert (good["family"], good["owner"]) == ("words", "xarch-shop 0.2")
    assert good["exports"] == ["npu"], "a profile that no test of the target builds is shown"
    needy = pairs["src", "needy"]
    assert (needy["status"], needy["stages"], needy["exports"]) == ("needs", [], [])
    assert "pip install 'xarch[vision]'" in needy["detail"]
    text = call("list", "pairs").output
    assert text.count("one > two") == 1, "pairs that differ in the source alone are one row for people"
    assert "run, src" in text
    assert "not loaded  broken: failed: ModuleNotFoundError" in text


def test_a_broken_recipe_shows_as_failed(shop: Site) -> None:
    (shop.folder / "general.yaml").write_text("a: 1\na: 2\n")
    pair = next(p for p in document("list", "pairs")["pairs"] if (p["source"], p["target"]) == ("src", "good"))
    assert pair["status"] == "failed"
    assert "a is given twice" in pair["detail"]


def test_every_kind_can_be_listed(shop: Site) -> None:
    everything = document("list")
    assert list(everything) == ["pairs", *PLURAL.values(), "not_loaded"]
    for kind in PLURAL.values():
        one = document("list", kind)
        assert one[kind] == everything[kind]
        call("list", kind)
    assert document("list", "teachers")["teachers"][0]["name"] == "zoo:small"
    assert document("list", "teachers")["teachers"][0]["facts"]["sha256"] == "0"
    assert "zoo:small" in call("list", "teachers").output
    assert {t["name"]: t["status"] for t in everything["targets"]} == {"good": "ready", "needy": "missing-extra"}
    names = [p["name"] for p in document("list", "plugins")["plugins"]]
    assert names == [p["name"] for p in document("plugins", "list")["plugins"]]


def test_conflicts_are_shown_on_both_sides(site: Site) -> None:
    for letter in "ab":
        site.install(f"xarch-{letter}", f"mod_{letter}", registering("registry.stage('twin', load='m:a')"))
    rows = [s for s in document("list", "stages")["stages"] if s["name"] == "twin"]
    assert [(r["plugin"], r["status"]) for r in rows] == [("mod_a", "conflict"), ("mod_b", "conflict")]


def test_plugins_can_be_disabled_and_enabled(shop: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> str:
        return {p["name"]: p["state"] for p in document("plugins")["plugins"]}["shop"]

    assert state() == "missing-extra"
    assert document("plugins", "disable", "shop") == {"disabled": ["shop"]}
    assert state() == "disabled"
    assert "shop is enabled" in call("plugins", "enable", "shop").output
    assert state() == "missing-extra"
    monkeypatch.setenv("XARCH_DISABLE_PLUGINS", "shop")
    assert "XARCH_DISABLE_PLUGINS still lists it" in call("plugins", "enable", "shop").output


def test_disabling_imports_nothing(site: Site) -> None:
    site.install("xarch-hangs", "hangs", "raise AssertionError('imported')")
    call("plugins", "disable", "hangs")
    call("plugins", "enable", "hangs")


def test_verbose_shows_tracebacks(shop: Site) -> None:
    assert "import nowhere_to_be_found" in call("plugins", "list", "-v").output
    assert "import nowhere_to_be_found" not in call("plugins", "list").output


def test_commands_of_plugins(site: Site) -> None:
    site.install(
        "xarch-cmd",
        "greeter",
        """
        import click
        from xarch import hookimpl

        @hookimpl
        def xarch_commands(group):
            @group.command("hello")
            @click.option("--name", default="you")
            def hello(name):
                click.echo(f"hello {name}")
        """,
    )
    assert call("greeter", "hello", "--name", "me").output == "hello me\n"
    assert "hello" in call("greeter", "--help").output


def test_inspect_shows_names_of_the_registry(shop: Site) -> None:
    found = document("inspect", "small")["names"][0]
    assert (found["kind"], found["ref"], found["plugin"]) == ("teacher", "src:file", "shop")
    assert "one: {kind: closed_form}" in document("inspect", "shop:z-general")["names"][0]["yaml"]
    shown = [line.rstrip() for line in call("inspect", "z-general").output.splitlines()]
    assert "      one: {kind: closed_form}" in shown, "the file was squeezed into a table cell"
    assert "\n    keys     list of string   -  " in call("inspect", "mixup").output, "an empty list is its default"


def test_a_plugin_file_from_the_command_line(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XARCH_PLUGIN_FILES", "")
    (tmp_path / "mine.py").write_text(
        "from xarch import hookimpl\n@hookimpl\ndef xarch_register(registry): registry.stage('own', load='m:a')"
    )
    names = {s["name"] for s in document("list", "stages", "--plugin", "mine.py")["stages"]}
    assert "own" in names


def test_methods_show_what_their_files_say(site: Site) -> None:
    """house 1.2: a recipe had no families, paper or control."""
    body = "registry.method('far', load='shop:far.yaml', families=['*']); registry.method('bad', load='shop:bad.yaml')"
    site.install("xarch-shop", "shop", registering(body))
    (site.folder / "far.yaml").write_text(
        "method: {title: Far Away, paper: 'arXiv:1', families: [words], control: near, summary: goes far}\nbudget: 3\n"
    )
    (site.folder / "bad.yaml").write_text("method: {titel: x}\n")
    rows = {r["name"]: r for r in document("list", "methods")["methods"]}
    far = rows["far"]
    told = {key: far[key] for key in ("title", "paper", "families", "control", "summary", "status")}
    assert told == {
        "title": "Far Away",
        "paper": "arXiv:1",
        "families": ["words"],
        "control": "near",
        "summary": "goes far",
        "status": "ready",
    }
    assert rows["bad"]["status"] == "failed"
    assert "titel" in rows["bad"]["detail"]
    shown = call("list", "methods").output
    for text in ("title", "paper", "control", "Far Away", "arXiv:1", "near"):
        assert text in shown
    inspected = document("inspect", "far")["names"][0]
    assert (inspected["title"], inspected["control"]) == ("Far Away", "near")


def test_objectives_show_what_they_compare(site: Site) -> None:
    site.module("things", "class Loss: accepts = frozenset({('BLD', 'none')}); units = 'nats'; Options = None")
    body = "registry.objective('o', load='things:Loss', compares='hidden states', units='nats', paper='arXiv:2')"
    site.install("xarch-shop", "shop", registering(body))
    row = next(r for r in document("list", "objectives")["objectives"] if r["name"] == "o")
    assert (row["compares"], row["units"], row["paper"]) == ("hidden states", "nats", "arXiv:2")
    assert "hidden states" in call("list", "objectives").output
    assert document("inspect", "o")["names"][0]["layouts"] == ["BLD / none"]


def test_a_family_nobody_registers_is_shown_as_an_error(site: Site) -> None:
    body = "registry.family('boxes', load='m:a'); registry.target('t', load='m:a', accepts=['boxs'])"
    site.install("xarch-shop", "shop", registering(body))
    row = next(r for r in document("list", "targets")["targets"] if r["name"] == "t")
    assert row["status"] == "unknown-family"
    assert "did you mean 'boxes'?" in row["detail"]
    assert "did you mean 'boxes'?" in call("plugins", "check", "shop", code=4).output


def test_papers_are_counted_with_what_comes_from_them(site: Site) -> None:
    site.install(
        "xarch-shop",
        "shop",
        registering("""
        registry.objective("b", load="m:a", paper="arXiv:1")
        registry.objective("a", load="m:a", paper="arXiv:1")
        registry.objective("c", load="m:a", paper="arXiv:2")
        registry.objective("d", load="m:a")
    """),
    )
    found = document("list", "objectives", "--papers")
    own = [row for row in found["papers"] if row["paper"] in ("arXiv:1", "arXiv:2")]
    assert own == [{"paper": "arXiv:1", "objectives": ["a", "b"]}, {"paper": "arXiv:2", "objectives": ["c"]}]
    assert found["count"] == len(found["papers"]) >= 2
    shown = call("list", "objectives", "--papers").output
    assert f"{found['count']} papers" in shown
    assert "a, b" in shown
