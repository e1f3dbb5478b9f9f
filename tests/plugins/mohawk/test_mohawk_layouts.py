"""Weights in the layouts of other libraries: equal outputs in their own modules, and back to the last bit."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import pytest
import torch

from tests.plugins.mohawk.mohawk_models import difference, logits, make_student, make_teacher, shake, tiny_facts, tokens
from xarch import UsageError
from xarch_decoder.model.decoder import make_sequence
from xarch_mohawk.bamba import save_bamba
from xarch_mohawk.layouts import load, mamba2, phi_mamba, qwen3_next, save
from xarch_mohawk.target import DM2Target, GDNTarget, Mamba2Target

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


@pytest.mark.parametrize("bias", [True, False])
def test_mamba2_is_that_of_transformers(bias):
    from transformers.models.bamba.configuration_bamba import BambaConfig
    from transformers.models.bamba.modeling_bamba import BambaMixer
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    sizes = {"hidden_size": 32, "num_hidden_layers": 1}
    config = Mamba2Config(
        **sizes, num_heads=4, head_dim=8, state_size=12, n_groups=4, expand=1, chunk_size=16, use_bias=bias,
        layer_norm_epsilon=1e-6,
    )  # fmt: skip
    bamba = BambaConfig(
        **sizes, num_attention_heads=4, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=12, mamba_n_groups=4,
        mamba_expand=1, mamba_chunk_size=16, mamba_proj_bias=bias, rms_norm_eps=1e-6,
    )  # fmt: skip
    ours = mixer(Mamba2Target, bias=bias, state_size=12)
    layout = mamba2(ours)
    for theirs in (Mamba2Mixer(config, 0), BambaMixer(bamba, 0)):
        theirs.load_state_dict(save(ours, layout), strict=True)
        assert difference(theirs(X), ours(X, SEQUENCE)) < 1e-5
        again = mixer(Mamba2Target, 1, bias=bias, state_size=12)
        load(again, layout, theirs.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("layers", ["all", {"replace": [0, 2]}], ids=["pure", "hybrid"])
def test_a_whole_student_is_a_bamba(layers, tmp_path):
    """Spec check D1: nothing missing or unexpected, logits equal."""
    from transformers import BambaForCausalLM

    teacher = make_teacher(FACTS)
    student = make_student(teacher, Mamba2Target, layers=layers)
    shake(student)
    student.finish()
    save_bamba(student.decoder, tmp_path)
    theirs, report = BambaForCausalLM.from_pretrained(tmp_path, output_loading_info=True, num_logits_to_keep=None)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = tokens(FACTS, 2, 40)
    found = theirs(batch["input_ids"], use_cache=False, logits_to_keep=0).logits
    assert difference(found, logits(student, batch)) < 1e-4


def test_what_bamba_lacks_is_named(tmp_path):
    student = make_student(make_teacher(tiny_facts(norm="layer", qk_norm=True)), Mamba2Target, layers={"keep": [1]})
    with pytest.raises(UsageError, match=r"layer norms.*normalised queries"):
        save_bamba(student.decoder, tmp_path)
    with pytest.raises(UsageError, match="another mixer"):
        save_bamba(make_student(make_teacher(FACTS), DM2Target).decoder, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_mamba2_has_the_tensors_of_mamba_ssm(monkeypatch):
    pytest.importorskip("triton")
    if importlib.util.find_spec("mamba_ssm") is None:
        pytest.skip("mamba_ssm is not installed")
    if importlib.util.find_spec("selective_scan_cuda") is None:
        monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    from mamba_ssm.modules.mamba2 import Mamba2

    theirs = Mamba2(32, d_state=12, headdim=8, expand=1, ngroups=4, bias=True)
    ours = mixer(Mamba2Target, state_size=12)
    theirs.load_state_dict(save(ours, mamba2(ours)), strict=True)


def test_phi_mamba_and_back():
    ours, again = mixer(DM2Target), mixer(DM2Target, 1)
    with pytest.raises(UsageError, match="gain has no place"):
        phi_mamba(ours)
    for one in (ours, again):
        one.fold_gain()
    tensors = save(ours, phi_mamba(ours))
    names = {"in_proj.weight", "in_proj.bias", "z_bias", "conv1d.weight", "conv1d.bias", "D", "out_proj.weight"}
    assert set(tensors) == names
    assert torch.equal(tensors["in_proj.bias"][-4:], ours.alpha_bias)
    load(again, phi_mamba(again), tensors)
    assert difference(again(X, SEQUENCE), ours(X, SEQUENCE)) == 0.0
    tensors["in_proj.bias"][0] = 1.0
    with pytest.raises(UsageError, match="not zero outside rows 128 to 131"):
        load(again, phi_mamba(again), tensors)


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
