"""Plans of a tiny decoder: what is proven before anything runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from xarch.api import plan
from xarch.errors import PlanError, UsageError
from xarch.export.profiles import cpu
from xarch.planning.estimate import Rates
from xarch.planning.export_check import trial_operators
from xarch.planning.resolve import resolve_target, resolve_teacher
from xarch.registry.loader import get_registry
from xarch_decoder.testing import tiny_llama, tiny_text


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plan")
    return {
        "recipe": "mohawk",
        "teacher": tiny_llama(folder / "teacher"),
        "student.target": "dm2",
        "data.ref": tiny_text(folder / "text.txt"),
        "data.options": {"tokenizer": "bytes"},
        "data.sample": {"length": 64},
    }


@pytest.mark.slow
def test_stages_add_up_nothing_is_trained_in_vain_and_no_weights_are_loaded(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = get_registry()
    source = registry.resolve(registry.get("source", "hf"))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(source, "load", never)
    made = plan(overrides={**base, "budget": 20_000})
    assert made.student.parameters > 0
    assert torch.get_default_device().type == "cpu"
    assert [s.name for s in made.stages] == ["init", "choose", "hidden", "refit", "logits"]
    hidden = made.stages[2]
    assert hidden.units == hidden.steps * hidden.batch * 64
    assert hidden.steps % hidden.passes == 0
    assert hidden.cache.use
    assert sum(hidden.trains.values()) > 0
    assert made.export[0].operators
    assert all(c.state != "failed" for c in made.checks)


@pytest.mark.slow
def test_the_iterations_of_muon_cost_time(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xarch.planning.estimate.measure_rates", lambda device, dtype, threads: Rates(1e9, 1e12, 0.0))
    base = {**base, "export.profiles": []}
    spent = {}
    for algorithm in ("adamw", "muon"):
        made = plan(overrides={**base, "stages.hidden.optimiser.algorithm": algorithm})
        spent[algorithm] = {s.name: (s.seconds, s.steps) for s in made.stages}
    (adam, _), (muon, steps) = spent["adamw"].pop("hidden"), spent["muon"].pop("hidden")
    assert muon - adam > steps * 5 * 16**3 * 3 / 1e9
    assert spent["adamw"] == spent["muon"]


def test_a_wrong_tap_is_named_with_its_neighbours(base: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="has no tap 'mixer_aut'") as caught:
        plan(overrides={**base, "stages.hidden.matches": [{"student": "mixer_aut", "objective": "l2"}]})
    assert "mixer_out" in (caught.value.hint or "")


@pytest.mark.slow
def test_an_optional_stage_is_left_out_where_a_tap_is_missing(base: dict[str, Any]) -> None:
    # Nothing here is about graphs, whose operators a plan finds by tracing them.
    base = {**base, "export.profiles": [], "stages.hidden.optional": True}
    made = plan(overrides={**base, "stages.hidden.matches": [{"student": "mixer_aut", "objective": "l2"}]})
    assert "hidden" not in [s.name for s in made.stages]
    assert any("stage hidden is skipped" in w and "has no tap 'mixer_aut'" in w for w in made.warnings)
    assert "hidden" in [s.name for s in plan(overrides=base).stages]


def test_layouts_that_cannot_be_compared_are_refused(base: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="cannot compare"):
        plan(overrides={**base, "stages.hidden.matches": [{"student": "mixer_out", "objective": "frobenius"}]})


def test_an_unknown_group_lists_the_known_ones(base: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="no group 'mixer'") as caught:
        plan(overrides={**base, "stages.hidden.trains": {"mixer": {}}})
    assert "mixers" in (caught.value.hint or "")


def test_a_wrong_student_option_is_named(base: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"student\.options\.statesize"):
        plan(overrides={**base, "student.options": {"statesize": 3}})


@pytest.mark.slow
def test_a_forbidden_operator_stops_the_plan(base: dict[str, Any]) -> None:
    registry = get_registry()
    source = resolve_teacher(registry, base["teacher"], {}, print)
    facts = source.adapter.describe(source.ref, source.options).facts
    target = resolve_target(registry, "dm2", {})
    given = target.adapter.ExportOptions()
    with pytest.raises(PlanError, match="operator Gemm is forbidden"):
        trial_operators(target.adapter, facts, target.options, replace(cpu, forbidden_ops=frozenset({"Gemm"})), given)


def test_a_missing_tokenizer_is_found_before_convert(base: dict[str, Any]) -> None:
    """The plan only warned; the conversion then needed it. And the teacher's tensors are accounted for by name."""
    without = {**base, "export.profiles": []}
    checks = {check.name: check for check in plan(overrides=without).checks}
    assert checks["teacher's weights"].state == "ok"
    with pytest.raises(UsageError, match="needs the teacher's processor") as caught:
        plan(overrides={**without, "data.options": {}})
    assert "data.options.tokenizer=bytes" in (caught.value.hint or "")
