"""Completes a configuration with what its target and the student's family say."""

from __future__ import annotations

from xarch.config.load import LoadedConfig
from xarch.planning.build import default_recipe
from xarch.planning.describe import Describer, family_of
from xarch.planning.sides import start_of
from xarch.registry.declare import ANY_FAMILY


def settled(loaded: LoadedConfig, describer: Describer) -> LoadedConfig:
    """Return the configuration with the target's default recipe, if it names none, and with the settings that it leaves
    to the student's family: of a method's stages, and of the evaluation.

    Raises:
        UsageError, PlanError, PluginError: see :func:`xarch.planning.build.build_plan`.
    """
    if loaded.needs_recipe:
        loaded = loaded.with_recipe(default_recipe(loaded.config, describer))
    if not loaded.layers:
        return loaded
    registry = describer.registry
    target, teacher, _ = start_of(loaded.config, describer)
    family = registry.get("target", target.name).produces
    if family == ANY_FAMILY:
        if teacher is None:
            return loaded
        family = teacher.info.family
    made, spec = family_of(registry, family), registry.get("family", family)
    data = describer.data(loaded.config, teacher.info.facts if teacher is not None else None).info
    with registry.guard(spec, "training_on"):
        settings = made.training_on(data)
    with registry.guard(spec, "evaluation_on"):
        evaluation = made.evaluation_on(data)
    return loaded.with_settings(settings, f"family {family}", evaluation)
