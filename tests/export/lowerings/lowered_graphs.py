"""A module exported to a profile and run, beside the module itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from torch import Tensor, nn

from xarch.contracts.export import ExportGraph, Profile
from xarch.export.check import operators, raise_unless_fits
from xarch.export.onnx_export import to_onnx
from xarch.export.origins import origins
from xarch.export.session import open_session


def exported(module: nn.Module, x: Tensor, profile: Profile, folder: Path) -> tuple[set[str], float]:
    """(operators of the graph, largest deviation from the module relative to its largest value).

    Raises:
        PlanError: it does not fit the profile.
    """
    module.eval().requires_grad_(False)
    model = to_onnx(ExportGraph("g", module, {"x": x}, ["y"]), profile)
    shaped = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    raise_unless_fits(shaped, profile, "g", origins(model))
    ir.save(model, folder / "g.onnx")
    onnx.checker.check_model(str(folder / "g.onnx"), full_check=True)
    seen = open_session(folder / "g.onnx", profile.provider, threads=1, optimise=False).run(None, {"x": x.numpy()})[0]
    wanted = module(x).numpy()
    assert seen.shape == wanted.shape
    return set(operators(shaped)), float(np.abs(seen - wanted).max() / max(np.abs(wanted).max(), 1e-9))
