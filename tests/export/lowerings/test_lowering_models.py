"""An ordinary model of a library leaves for an accelerator without a line of its author."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.export.lowerings.lowered_graphs import exported
from xarch.export.profiles import npu

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    "name", ["test_vit", pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)]
)  # fmt: skip
def test_vision_transformers_fit_an_accelerator(name: str, tmp_path: Path) -> None:
    """vision 2.12: refused for Erf and rank 5 before."""
    torch.manual_seed(0)
    small = {"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2)} if name.startswith("swin") else {"depth": 2}
    model = timm.create_model(name, pretrained=False, **small)
    size = model.default_cfg["input_size"][-1]
    assert exported(model, torch.rand(2, 3, size, size), npu, tmp_path)[1] < 1e-5
