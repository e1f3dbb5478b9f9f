"""One broken plugin costs only what it offers itself, and is shown with its reason."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.registry.fake_dist import Site, registering
from xarch.errors import PluginError, UsageError
from xarch.registry.loader import PluginInfo, load_registry
from xarch.registry.registry import Registry

GOOD = registering("registry.objective('good', load='json:dumps', summary='fine')")


def info(registry: Registry, name: str) -> PluginInfo:
    return next(p for p in registry.plugins() if p.name == name)


def test_the_core_is_always_there(site: Site) -> None:
    registry = load_registry()
    core = info(registry, "core")
    assert (core.state, core.distribution) == ("ok", "xarch")
    assert {"gradient", "closed_form"} <= {s.name for s in registry.specs("stage")}
    assert core.heavy == ()


@pytest.mark.parametrize(
    ("code", "state", "detail"),
    [
        ("import nowhere_to_be_found", "failed", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("raise SystemExit(3)", "failed", "SystemExit: 3"),
        ("def broken(:", "failed", "SyntaxError: invalid syntax"),
        ("x = 1", "failed", "ValueError: bad has no hooks: it should implement xarch_register"),
        ("def xarch_register(registry): pass", "failed", "bad has no hooks: xarch_register is not marked"),
        (registering("1 / 0"), "failed", "ZeroDivisionError: division by zero"),
        (registering("raise SystemExit"), "failed", "SystemExit"),
        (registering("registry.objective('x', load='nonsense')"), "failed", "should look like 'module:attribute'"),
        (registering("registry.objective('a:b', load='m:a')"), "failed", "a name is letters"),
        (registering("[registry.stage('s', load='m:a') for _ in range(2)]"), "failed", "'s' is declared twice"),
        (registering("registry.target('t', load='m:a', accepts=[])"), "failed", "accepts names no family"),
        (registering("registry.metric('t', load='m:a')"), "failed", "missing 1 required keyword-only argument"),
        (
            "from xarch import hookimpl\n@hookimpl\ndef xarch_regster(registry): pass",
            "failed",
            "unknown hooks xarch_regster",
        ),
        ("from xarch import hookimpl\n@hookimpl\ndef xarch_register(registry, wrong): pass", "failed", "wrong"),
        (registering("registry.objective('x', load='m:a', api=99)"), "incompatible", "written for plugin API 99"),
        (
            registering("registry.objective('x', load='m:a', needs=['not_here'], extra='vision')"),
            "missing-extra",
            "needs not_here: pip install 'xarch[vision]'",
        ),
    ],
)
def test_broken_plugins_are_reported_and_isolated(site: Site, code: str, state: str, detail: str) -> None:
    site.install("xarch-bad", "bad", code)
    site.install("xarch-good", "good", GOOD)
    registry = load_registry()
    bad = info(registry, "bad")
    assert (bad.state, bad.distribution, bad.version) == (state, "xarch-bad", "0.2")
    assert detail in bad.detail
    assert info(registry, "good").state == "ok"
    assert registry.resolve(registry.get("objective", "good"))([1]) == "[1]"
    if state == "failed":
        assert not [s for s in registry.specs() if s.plugin == "bad"]
        assert "Traceback" in bad.traceback or "SyntaxError" in bad.traceback


def test_a_plugin_that_fails_half_way_leaves_nothing_behind(site: Site) -> None:
    body = "registry.objective('half', load='m:a'); raise OSError('disk')"
    extra = "\n    @hookimpl\n    def xarch_stage_started(run): raise AssertionError('must not be called')\n"
    site.install("xarch-bad", "bad", registering(body) + extra)
    registry = load_registry()
    assert "half" not in {s.name for s in registry.specs("objective")}
    assert registry.call("xarch_stage_started", run=None, stage=None) == []


def test_prints_at_import_do_not_reach_stdout(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("xarch-loud", "loud", "print('HELLO')\n" + "\n".join(GOOD.split("\n    ")))
    loud = info(load_registry(), "loud")
    assert (loud.state, loud.output) == ("ok", "HELLO\n")
    assert "HELLO" not in capsys.readouterr().out


@pytest.mark.parametrize("requirement", ["xarch>=99", "xarch<0.0.1", "xarch (==42)"])
def test_a_plugin_for_another_xarch_is_never_imported(site: Site, requirement: str) -> None:
    site.install("xarch-old", "old", "raise AssertionError('imported')", requires=("numpy", requirement))
    old = info(load_registry(), "old")
    assert old.state == "incompatible"
    assert "requires xarch" in old.detail
    assert "old" not in sys.modules


def test_requirements_of_extras_do_not_count(site: Site) -> None:
    site.install("xarch-dev", "dev", GOOD, requires=("xarch>=0", 'xarch>=99; extra == "dev"', "xarchive>=99"))
    assert info(load_registry(), "dev").state == "ok"


def test_a_missing_module_of_an_entry_point_with_an_extra_says_what_to_install(site: Site) -> None:
    site.install("xarch-x", "x", "import nowhere_to_be_found", extra="vision")
    x = info(load_registry(), "x")
    assert x.state == "missing-extra"
    assert "pip install 'xarch-x[vision]'" in x.detail
    assert not x.loaded


def test_heavy_imports_are_noticed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    site.module("jax", "")
    site.install("xarch-heavy", "heavy", "import jax\n" + "\n".join(GOOD.split("\n    ")))
    assert info(load_registry(), "heavy").heavy == ("jax",)


def test_two_distributions_with_one_plugin_name_are_both_reachable(site: Site) -> None:
    site.install("xarch-a", "mod_a", registering("registry.stage('sa', load='m:a')"), entry="same")
    site.install("xarch-b", "mod_b", registering("registry.stage('sb', load='m:a')"), entry="same")
    site.install("xarch-c", "mod_c", registering("registry.stage('sc', load='m:a')"), entry="core")
    registry = load_registry()
    names = {p.name for p in registry.plugins()}
    assert {"core", "xarch-a/same", "xarch-b/same", "xarch-c/core"} <= names
    assert registry.get("stage", "xarch-b/same:sb").plugin == "xarch-b/same"
    assert registry.get("stage", "core:gradient").plugin == "core"


@pytest.mark.parametrize("value", ["good", "other, good", "xarch-good", "all", "*"])
def test_disabled_by_environment(site: Site, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    site.install("xarch-good", "good", "raise AssertionError('imported')")
    monkeypatch.setenv("XARCH_DISABLE_PLUGINS", value)
    registry = load_registry()
    assert info(registry, "good").state == "disabled"
    assert info(registry, "core").state == "ok"
    with pytest.raises(PluginError, match="is disabled"):
        registry.get("objective", "good:thing")


def test_strict_mode_stops_at_the_first_broken_plugin(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("aaa-bad", "bad", "raise OSError('disk')")
    monkeypatch.setenv("XARCH_STRICT_PLUGINS", "1")
    monkeypatch.setenv("XARCH_DISABLE_PLUGINS", "hf,mohawk,text")
    with pytest.raises(PluginError, match=r"plugin 'bad' \(aaa-bad 0.2\) is failed: OSError: disk") as caught:
        load_registry()
    assert isinstance(caught.value.__cause__, OSError)


def test_plugin_files(site: Site, tmp_path: Path) -> None:
    code = """
from xarch import hookimpl

class Mine:
    pass

@hookimpl
def xarch_register(registry):
    registry.stage("mine", load=f"{__name__}:Mine")
    registry.recipe("here", load=f"{__name__}:recipes/here.yaml")
"""
    (tmp_path / "one.py").write_text(code)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "here.yaml").write_text("budget: 7\n")
    registry = load_registry([str(tmp_path / "one.py")])
    assert info(registry, "one").origin == str(tmp_path / "one.py")
    assert type(registry.create("stage", "one:mine")).__name__ == "Mine"
    assert registry.resolve(registry.get("recipe", "here")) == "budget: 7\n"


def test_a_plugin_file_given_by_hand_must_work(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_registry([str(tmp_path / "absent.py")])
    (tmp_path / "bad.py").write_text("raise OSError('disk')")
    with pytest.raises(PluginError, match="OSError: disk"):
        load_registry([str(tmp_path / "bad.py")])
    assert "xarch_plugin_file_bad" not in sys.modules


def test_a_plugin_that_takes_long_is_named_while_it_loads(
    site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xarch.registry.watch.SLOW_SECONDS", 0.05)
    plugin = "import time; time.sleep(0.3)\nfrom xarch import hookimpl\n@hookimpl\ndef xarch_register(registry): pass"
    site.install("xarch-slow", "slow", plugin)
    assert info(load_registry(), "slow").state == "ok"
    said = capfd.readouterr().err
    assert "xarch: loading plugin 'slow' (xarch-slow" in said
    assert "takes more than 0.05 s; XARCH_DISABLE_PLUGINS=slow leaves it out" in said


def test_a_quick_plugin_is_not_named(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    leave = os._exit
    load_registry()
    assert capfd.readouterr().err == ""
    assert os._exit is leave


def test_a_plugin_that_ends_the_process_is_named(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    site.install("xarch-gone", "gone", "import os; os._exit(7)")
    child = os.fork()
    if child == 0:
        load_registry()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    said = capfd.readouterr().err
    assert "xarch: plugin 'gone' (xarch-gone" in said
    assert "ended this process by os._exit(7) while it was loading; XARCH_DISABLE_PLUGINS=gone leaves it out" in said


def test_a_process_that_a_plugin_forks_may_end_itself(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    plugin = "import os\nif os.fork() == 0: os._exit(0)\nos.wait()\nraise LookupError('not found')"
    site.install("xarch-forks", "forks", plugin)
    assert info(load_registry(), "forks").state == "failed"
    assert "os._exit" not in capfd.readouterr().err


def test_ctrl_c_while_loading_passes(site: Site) -> None:
    site.install("xarch-c", "ctrlc", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_registry()


def test_registering_touches_no_lazy_attribute(site: Site) -> None:
    lazy = """
    from xarch import hookimpl

    def __dir__():
        return ["heavy_thing", "xarch_register"]

    def __getattr__(name):
        raise AssertionError(f"touched {name}")

    @hookimpl
    def xarch_register(registry):
        registry.stage("lazy", load="m:a")
    """
    site.install("xarch-lazy", "lazy", lazy)
    assert info(load_registry(), "lazy").state == "ok"
