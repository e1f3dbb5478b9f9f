"""Folders as teachers: what is read, what is refused, what identifies them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tests.plugins.hf.hf_models import CONFIGS, CPU, LAYERS, batch, random_model, relative, saved, teacher
from xarch import PlanError, UsageError
from xarch_hf.source import HFOptions, HFSource


def with_tokenizer(folder: Path) -> None:
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", "the", "cat", "sat"])}
    plain = Tokenizer(WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@torch.no_grad()
def test_sharded_weights_are_one_model(tmp_path: Path) -> None:
    model: Any = random_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    info = HFSource().describe(str(tmp_path), HFOptions())
    assert len(info.details["files"]) == len(list(tmp_path.glob("*.safetensors")))
    data = batch()
    seen = teacher(tmp_path).collect(data, ["logits"])["logits"].full()
    assert relative(seen, model(data["input_ids"]).logits) < 1e-5


def test_the_description_counts_what_is_there(tmp_path: Path) -> None:
    model = saved("llama", tmp_path)
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# x\n", encoding="utf-8")
    info = HFSource().describe(str(tmp_path), HFOptions())
    assert info.family == "decoder"
    assert info.facts.layers == LAYERS
    assert info.parameters == sum(p.numel() for p in model.parameters()) == info.details["stored_values"]
    assert info.weight_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert info.details["licence"] == "apache-2.0"
    assert any("no tokenizer" in warning for warning in info.warnings)
    with_tokenizer(tmp_path)
    assert HFSource().describe(str(tmp_path), HFOptions()).warnings == ()


@torch.no_grad()
def test_tiny_keeps_the_first_two_layers(tmp_path: Path) -> None:
    model: Any = saved("qwen2-mixed-windows", tmp_path)
    options = HFSource().tiny(HFOptions())
    info = HFSource().describe(str(tmp_path), options)
    assert info.facts.layers == 2
    assert info.facts.windows == (None, 6)
    assert info.details["layers_kept"] == f"2 of {LAYERS}"
    made = HFSource().load(str(tmp_path), options, device=CPU, dtype=torch.float32)
    data = batch()
    seen = made.collect(data, ["blocks.1.output"])["blocks.1.output"]
    wanted = model(data["input_ids"], output_hidden_states=True).hidden_states[2]
    assert relative(seen, wanted) < 1e-5
    assert made.fingerprint != teacher(tmp_path).fingerprint
    with pytest.raises(UsageError, match=r"has 3 layers, but option layers requests 4"):
        HFSource().describe(str(tmp_path), HFOptions(layers=4))
    assert HFSource().tiny(HFOptions(layers=1)).layers == 1  # type: ignore[attr-defined]


def test_another_precision_is_what_was_asked_for(tmp_path: Path) -> None:
    saved("gpt_neox", tmp_path)
    made = HFSource().load(str(tmp_path), HFOptions(), device=CPU, dtype=torch.bfloat16)
    assert {p.dtype for p in made.module.parameters()} == {torch.bfloat16}
    assert made.collect(batch(), ["final"])["final"].dtype == torch.bfloat16


def test_old_names_of_a_model_are_understood(tmp_path: Path) -> None:
    model = saved("gpt_neox", tmp_path)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        assert "embed_out.weight" in tensors
        assert "lm_head.weight" not in tensors
        tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
        tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(1)

    rewrite(tmp_path, rename)
    seen = teacher(tmp_path).weights()["head.weight"]
    assert torch.equal(seen, model.get_parameter("lm_head.weight").detach())


def test_unknown_extra_tensors_are_listed(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    rewrite(tmp_path, lambda t: t.update({"model.layers.1.lora_A": torch.ones(2), "extra": torch.ones(1)}))
    with pytest.raises(PlanError, match=r"does not use: extra, model\.layers\.1\.lora_A"):
        teacher(tmp_path)


def test_layers_beyond_the_configuration_are_extra(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(PlanError, match=r"does not use: model\.layers\.2\."):
        teacher(tmp_path)


def test_missing_and_misshapen_tensors_are_errors(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    pad = torch.zeros(200)
    rewrite(tmp_path, lambda t: (t.pop("model.layers.2.mlp.up_proj.weight"), t.update({"x": torch.zeros(48 * 32)})))
    with pytest.raises(PlanError, match=r"lack weights: model\.layers\.2\.mlp\.up_proj\.weight"):
        teacher(tmp_path)
    saved("llama", tmp_path)
    rewrite(tmp_path, lambda t: t.update({"model.norm.weight": pad}))
    with pytest.raises(PlanError, match=r"model\.norm\.weight has shape \(200,\) .* implies \(32,\)"):
        teacher(tmp_path)


@pytest.mark.parametrize("field", ["vocab_size", "intermediate_size"])
def test_the_plan_names_a_weight_that_does_not_fit_and_both_shapes(tmp_path: Path, field: str) -> None:
    """h16: not "the above report", which nobody sees."""
    saved("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: 40}))
    name, seen = ("embed_tokens", 61) if field == "vocab_size" else ("down_proj|gate_proj|up_proj", 48)
    with pytest.raises(PlanError, match=rf"({name})\.weight has shape .*{seen}.* the configuration implies .*40"):
        HFSource().describe(str(tmp_path), HFOptions())


@pytest.mark.parametrize("change", ["lacking", "left over"])
def test_the_plan_meets_what_loading_would_meet(tmp_path: Path, change: str) -> None:
    """h14: missing and left-over weights are seen in the headers."""
    saved("gpt_neox", tmp_path)
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"
    rewrite(tmp_path, lambda t: t.pop(name) if change == "lacking" else t.update({"adapter.x": torch.ones(2)}))
    with pytest.raises(
        PlanError, match=name.replace(".", r"\.") if change == "lacking" else r"does not use: adapter\.x"
    ):
        HFSource().describe(str(tmp_path), HFOptions())


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
@pytest.mark.parametrize("equal", [False, True])
def test_a_head_of_its_own_decides_against_the_flag(tmp_path: Path, name: str, equal: bool) -> None:
    """h14: merges and fine-tunes leave tie_word_embeddings beside a head of its own; transformers keeps that head."""
    model: Any = random_model(name, tie_word_embeddings=False)
    if equal:
        model.get_output_embeddings().weight.copy_(model.get_input_embeddings().weight)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    info = HFSource().describe(str(tmp_path), HFOptions())
    if name == "llama":
        assert info.facts.tied == equal
    made = teacher(tmp_path)
    assert made.facts == info.facts
    data = batch()
    assert relative(made.collect(data, ["logits"])["logits"].full(), model(data["input_ids"]).logits) < 1e-5


@pytest.mark.slow
def test_a_pickled_head_of_its_own_is_explained(tmp_path: Path, home: Path) -> None:
    """h14: a pickle has no header; its plan says that it is looked at later."""
    model: Any = random_model("llama", tie_word_embeddings=False)
    model.config.tie_word_embeddings = True
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    info = HFSource().describe(str(tmp_path), HFOptions(allow_pickle=True))
    assert any("checked when loaded" in warning for warning in info.warnings)
    with pytest.raises(PlanError, match="a different head"):
        teacher(tmp_path, allow_pickle=True)


def test_a_configuration_larger_than_its_file_allocates_nothing(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 10**12}))
    with pytest.raises(PlanError, match=r"implies \(1000000000000, 32\)"):
        teacher(tmp_path)


def test_damaged_weights_are_found_by_the_description(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UsageError, match="not a sound safetensors file"):
        HFSource().describe(str(tmp_path), HFOptions())


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "..", "a/b.safetensors", "a" * 300])
def test_an_index_cannot_name_files_elsewhere(name: str, tmp_path: Path) -> None:
    CONFIGS["llama"]().save_pretrained(tmp_path)
    index = {"weight_map": {"model.norm.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="outside its folder"):
        HFSource().describe(str(tmp_path), HFOptions())


def test_a_folder_of_another_kind_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        HFSource().describe(str(tmp_path), HFOptions())
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"use gguf:.*m\.gguf"):
        HFSource().describe(str(tmp_path), HFOptions())
    with pytest.raises(UsageError, match=r"is a file.*\n.*gguf:"):
        HFSource().describe(str(tmp_path / "m.gguf"), HFOptions())
    with pytest.raises(UsageError, match="no such folder"):
        HFSource().describe(str(tmp_path / "nowhere" / "at" / "all"), HFOptions())
    CONFIGS["llama"]().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="has no weights"):
        teacher(tmp_path)


@pytest.mark.slow
@torch.no_grad()
def test_pickled_weights_need_permission(tmp_path: Path, home: Path) -> None:
    model: Any = random_model("phi")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for call in (lambda: HFSource().describe(str(tmp_path), HFOptions()), lambda: teacher(tmp_path)):
        with pytest.raises(UsageError, match=r"only as pickles.*\n.*--allow-pickle"):
            call()
    info = HFSource().describe(str(tmp_path), HFOptions(allow_pickle=True))
    assert info.weight_bytes == (tmp_path / "pytorch_model.bin").stat().st_size
    data = batch()
    seen = teacher(tmp_path, allow_pickle=True).collect(data, ["logits"])["logits"].full()
    assert relative(seen, model(data["input_ids"]).logits) < 1e-5
    assert len(list(home.rglob("unpickled/*.safetensors"))) == 1


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    CONFIGS["llama"]().save_pretrained(tmp_path)
    torch.save({"model.norm.weight": Payload(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="was refused"):
        teacher(tmp_path, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_the_fingerprint_follows_weights_and_configuration(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    first = teacher(tmp_path).fingerprint
    assert first == teacher(tmp_path).fingerprint
    assert len(first) == 64
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    second = teacher(tmp_path).fingerprint
    rewrite(tmp_path, lambda t: t["model.norm.weight"].add_(1))
    third = teacher(tmp_path).fingerprint
    assert len({first, second, third}) == 3


def test_the_tokenizer_travels_alone(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    assert teacher(tmp_path).processor() is None
    teacher(tmp_path).save_processor(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    with_tokenizer(tmp_path)
    made = teacher(tmp_path)
    made.save_processor(str(tmp_path / "student"))
    alone = Tokenizer.from_file(str(tmp_path / "student" / "tokenizer.json"))
    assert alone.encode("the cat sat").ids == made.processor()("the cat sat")["input_ids"] == [3, 4, 5]


def test_a_broken_tokenizer_is_an_error(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    with_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"tokenizer\.json is not valid JSON"):
        teacher(tmp_path).processor()


def test_files_beside_the_weights_change_nothing(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    elsewhere = {"base_model_name_or_path": "somewhere/else", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(elsewhere))
    assert teacher(tmp_path).facts.layers == LAYERS


def test_registration_imports_nothing_heavy() -> None:
    code = (
        "import sys, xarch_hf\n"
        "from xarch.registry.declare import Declarations\n"
        "r = Declarations('hf'); xarch_hf.xarch_register(r)\n"
        "print(sorted(f'{s.kind}:{s.name}' for s in r.specs))\n"
        "print([m for m in ('torch', 'transformers', 'gguf', 'numpy', 'pydantic') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['source:gguf', 'source:hf', 'teacher:smollm2-135m']", "[]"]


def test_the_plugin_imports_public_names_only() -> None:
    import ast

    import xarch

    root = Path(__file__).resolve().parents[3] / "plugins" / "xarch_hf"
    for file in root.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "xarch":
                public = node.module == "xarch" and {a.name for a in node.names} <= set(xarch.__all__)
                assert public, f"{file.name}: {node.module}"
