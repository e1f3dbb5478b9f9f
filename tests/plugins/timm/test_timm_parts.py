"""Models of timm rebuilt from their facts, and the modules of theirs that may be replaced."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from xarch import PlanError, rebuilder
from xarch.testing.models import load_teacher
from xarch_image import ImageFacts
from xarch_image.testing import image_batch, tiny_classifier
from xarch_timm.build import describe


def kinds(name: str, **arguments) -> Counter[str]:
    facts = describe(name, classes=3, size=(32, 32), arguments=arguments)
    adapter, options = rebuilder(facts)
    student = adapter.build(facts, options, {}, device=torch.device("meta"))
    parts = student.replaceable()
    for part in parts:
        module = student.module.get_submodule(part.path)
        layers = [module.get_submodule(layer) for layer in (*part.into, part.out)] if part.out else [module]
        assert all(isinstance(layer, torch.nn.Linear) for layer in layers)
        assert part.residual == (part.kind == "mlp")
    return Counter(part.kind for part in parts)


def test_a_rebuilt_model_is_the_teacher(tmp_path: Path):
    teacher = load_teacher(tiny_classifier(tmp_path, name="test_vit"))
    adapter, options = rebuilder(teacher.facts)
    student = adapter.build(teacher.facts, options, {}, device=torch.device("cpu"))
    planned = adapter.initialise(student, teacher)
    assert set(planned.copied) == set(teacher.weights())
    batch = image_batch(teacher.facts)
    student.module.eval()
    with torch.no_grad():
        one, two = (model.collect(batch, {"logits", "pooled"}) for model in (teacher, student))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_parts_are_found_by_what_runs():
    assert kinds("test_vit", patch_size=8, depth=2) == {"qkv": 2, "o": 2, "mlp": 2}
    # Tokens are mixed by an MLP over positions.
    mixer = {"patch_size": 8, "num_blocks": 2, "embed_dim": 16}
    assert kinds("mixer_s16_224", **mixer) == {"mlp": 4}
    # A convolution is no linear map of vectors in the last dimension.
    assert kinds("test_resnet") == {}


def test_attention_in_windows_is_left_out():
    """Windows are samples to it."""
    swin = {"patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}
    assert kinds("swin_tiny_patch4_window7_224", **swin) == {"mlp": 2}


def test_models_of_nobody_are_refused():
    with pytest.raises(PlanError, match=r"no plugin can rebuild a model with these facts \(of-nobody\)"):
        rebuilder(ImageFacts("of-nobody", 3, 3, 8, 8, (), 4))
