"""Radiance fields: any-to-any conversion by progressive volume distillation (PVD, arXiv 2211.15977)."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl

FAMILY = "radiance-field"
TARGETS = {
    "hash": ("HashTarget", "radiance field of hash tables (Instant-NGP)"),
    "mlp": ("MLPTarget", "radiance field as an MLP (NeRF)"),
    "vm": ("VMTarget", "radiance field of planes times lines (TensoRF VM)"),
    "cp": ("CPTarget", "radiance field of products of lines (TensoRF CP)"),
    "hash+vm": ("HashVMTarget", "radiance field of hash tables plus planes times lines"),
    "tensors": ("VoxelTarget", "radiance field of dense voxels (Plenoxels)"),
}
USUAL = {"mlp": "pvd-mlp", "vm": "pvd-factors", "cp": "pvd-factors", "tensors": "pvd-bake"}
"""Target -> its default recipe, if not "pvd"."""


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the source, six targets, objectives, data, metric, report sections and recipes."""
    registry.source(
        "field",
        load="xarch_pvd.source.source:FieldSource",
        produces=FAMILY,
        summary="trained radiance fields: FILE or demo",
    )
    for name, (adapter, summary) in TARGETS.items():
        registry.target(
            name,
            load=f"xarch_pvd.targets.target:{adapter}",
            accepts=[FAMILY],
            produces=FAMILY,
            summary=summary,
            recipes=dict.fromkeys([USUAL.get(name, "pvd"), "pvd-copy", "pvd"]),
            # Hashing needs 64-bit integers, which accelerators lack.
            profiles=["cpu"] if "hash" in name else ["cpu", "npu", "npu-fp16", "npu-int8"],
        )
    for name, attribute, summary in (
        ("field-mse", "FieldMSE", "mean squared error, weighted by visibility in the teacher"),
        ("log-density", "LogDensity", "one-sided squared error of raw log-densities"),
    ):
        registry.objective(
            name,
            load=f"xarch_pvd.objectives:{attribute}",
            compares="points or rays",
            paper="arXiv:2211.15977",
            summary=summary,
        )
    registry.data(
        "views", load="xarch_pvd.data.provider:Views", summary="points and rays sampled from a field, without images"
    )
    registry.report(
        "renders",
        load="xarch_pvd.evaluate.report:sections",
        accepts=[FAMILY],
        summary="renders with error maps, sizes, time to reach a PSNR",
    )
    registry.metric(
        "field-psnr",
        load="xarch_pvd.evaluate.metric:FieldPSNR",
        accepts=[FAMILY],
        summary="PSNR and SSIM of rendered views",
    )
    registry.method(
        "pvd",
        load="xarch_pvd:recipes/pvd.yaml",
        families=[FAMILY],
        summary="field to field via volume feature, points, rays; half a minute on one core",
    )
    for name, summary in (
        ("pvd-mlp", "field to MLP: the same stages with larger learning rates, fewer rays"),
        ("pvd-factors", "field to planes and lines: fitted to the volume, then points and rays"),
        ("pvd-active", "field to field with a long rays stage that returns to the worst poses and rays (PVD-AL)"),
        ("pvd-bake", "field to dense voxels: baked, then corrected on rays"),
        ("pvd-copy", "field to the same kind and shape: copies everything without training"),
        ("pvd-demo", "demo: a hash field of a procedural scene to planes times lines"),
    ):
        registry.recipe(name, load=f"xarch_pvd:recipes/{name}.yaml", summary=summary)


@hookimpl
def xarch_commands(group: Any) -> None:
    """Add ``xarch pvd train``, ``edit``, ``save`` and ``render``."""
    from xarch_pvd import commands

    for name in commands.__all__:
        group.add_command(getattr(commands, name))
