"""Weights in the layouts of other libraries: equal outputs in their own modules, and back to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.plugins.mohawk.mohawk_models import difference, make_student, make_teacher, shake, tiny_facts
from xarch import UsageError
from xarch_decoder.model.decoder import make_sequence
from xarch_mohawk.layouts import load, qwen3_next, save
from xarch_mohawk.target import GDNTarget

FACTS = tiny_facts(norm_eps=1e-6)
X = torch.randn(2, 70, 32, generator=torch.Generator().manual_seed(3))
SEQUENCE = make_sequence(torch.zeros(2, 70, dtype=torch.int64), None)


def mixer(kind: Any, seed: int = 0, **options: Any) -> Any:
    student = make_student(make_teacher(FACTS), kind, **options)
    shake(student, seed)
    return student.mixer(1)


def test_gated_deltanet_is_that_of_qwen3_next():
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=32,
        linear_num_value_heads=4,
        linear_num_key_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-6,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    ours, theirs = mixer(GDNTarget, form="stock", states="heads"), Qwen3NextGatedDeltaNet(config, 0)
    layout = qwen3_next(ours)
    assert not theirs.load_state_dict(save(ours, layout), strict=True).missing_keys
    assert difference(theirs(X), ours(X, SEQUENCE)) < 1e-5
    again = mixer(GDNTarget, 1, form="stock", states="heads")
    load(again, layout, theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


def test_what_does_not_fit_is_named():
    with pytest.raises(UsageError, match="no mixer of this form"):
        qwen3_next(mixer(GDNTarget))
    with pytest.raises(UsageError, match="no mixer of this form"):
        qwen3_next(mixer(GDNTarget, form="stock"))
    ours = mixer(GDNTarget, form="stock", states="heads")
    layout = qwen3_next(ours)
    tensors = save(ours, layout)
    with pytest.raises(UsageError, match=r"got .*'A_log'"):
        load(ours, layout, {name: t for name, t in tensors.items() if name != "dt_bias"})
    with pytest.raises(UsageError, match=r"A_log has shape \[3\], want \[4\]"):
        load(ours, layout, tensors | {"A_log": torch.zeros(3)})
