"""GGUF files: written by the gguf package from small models, read back, damaged, refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers import Tokenizer
from torch import Tensor

from tests.plugins.hf.hf_models import CPU, LAYERS, batch, random_model, relative
from xarch import PlanError, UsageError
from xarch_hf import gguf_convert
from xarch_hf.gguf_convert import cached_folder, is_converted
from xarch_hf.gguf_header import Length, gguf_header
from xarch_hf.gguf_source import GGUFSource
from xarch_hf.source import DecoderOptions
from xarch_hf.teacher import HFTeacher

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def permuted(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbouring channels where transformers rotates halves."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def write_gguf(
    model: Any,
    file: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    vocabulary: Callable[[GGUFWriter], None] | None = None,
    **facts: Any,
) -> Path:
    """A model as llama.cpp's converter would write it.

    Args:
        vocabulary: writes another tokenizer than the usual one, or further keys after it.
        facts: further metadata of the architecture.
    """
    config = model.config
    arch = config.model_type
    writer = GGUFWriter(file, arch)
    writer.add_name("a small model")
    writer.add_license("mit")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, value in facts.items():
        if isinstance(value, list):
            writer.add_array(f"{arch}.{key}", value)
        else:
            writer.add_key_value(f"{arch}.{key}", value, _kind(value))
    (vocabulary or _vocabulary(config.vocab_size))(writer)
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if arch == "llama" and "q_proj" in name:
            tensor = permuted(tensor, config.num_attention_heads)
        if arch == "llama" and "k_proj" in name:
            tensor = permuted(tensor, config.num_key_value_heads)
        data = tensor.contiguous().numpy()
        if data.ndim > 1 and kind is not GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _vocabulary(size: int) -> Callable[[GGUFWriter], None]:
    """A byte-level vocabulary of a few words, split as GPT-2 does."""

    def write(writer: GGUFWriter) -> None:
        tokens = [f"w{i}" for i in range(size)]
        tokens[:8] = ["<|endoftext|>", "a", "b", "c", "Ġ", "ab", "Ġc", "d"]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * (len(tokens) - 1))
        writer.add_token_merges(["a b", "Ġ c"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.add_tokenizer_pre("gpt-2")

    return write


def _kind(value: Any) -> Any:
    from gguf import GGUFValueType

    return {int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}[type(value)]


def load(file: Path, **options: Any) -> HFTeacher:
    return GGUFSource().load(str(file), DecoderOptions(**options), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_a_file_gives_the_model_it_was_made_from(name: str, tmp_path: Path, capsys: Any) -> None:
    model: Any = random_model("qwen2-plain" if name == "qwen2" else name)
    facts: dict[str, Any] = {"attention.key_length": 16} if name == "qwen3" else {}
    file = write_gguf(model, tmp_path / "m.gguf", **facts)
    described = GGUFSource().describe(str(file), DecoderOptions())
    assert not is_converted(file)
    made = load(file)
    assert "dequantising" in capsys.readouterr().err
    assert described.facts == made.facts
    assert described.parameters == sum(p.numel() for p in made.module.parameters())
    assert described.details["types"] == ["F32"]
    assert described.details["licence"] == "mit"
    assert made.facts.norm_eps == model.config.rms_norm_eps
    assert made.facts.tied == model.config.tie_word_embeddings
    data = batch()
    assert relative(made.collect(data, ["logits"])["logits"].full(), model(data["input_ids"]).logits) < 1e-5


@torch.no_grad()
def test_biases_are_kept(tmp_path: Path) -> None:
    model: Any = random_model("llama-biased")
    file = write_gguf(model, tmp_path / "m.gguf")
    data = batch()
    seen = load(file).collect(data, ["logits"])["logits"].full()
    assert relative(seen, model(data["input_ids"]).logits) < 1e-5


@torch.no_grad()
def test_linear_rotary_scaling_is_kept(tmp_path: Path) -> None:
    file = write_gguf(
        random_model("llama"), tmp_path / "m.gguf", **{"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    )
    plain = load(write_gguf(random_model("llama"), tmp_path / "plain.gguf")).facts.inverse_frequencies
    assert load(file).facts.inverse_frequencies == tuple(f / 2 for f in plain)


@torch.no_grad()
def test_quantised_weights_are_dequantised(tmp_path: Path) -> None:
    # Blocks of 32 need rows of a multiple of 32, so the model is a wider one.
    model: Any = random_model("llama-64")
    file = write_gguf(model, tmp_path / "m.gguf", GGMLQuantizationType.Q8_0)
    info = GGUFSource().describe(str(file), DecoderOptions())
    assert info.details["types"] == ["F32", "Q8_0"]
    assert info.weight_bytes < 0.35 * 4 * info.parameters
    made = load(file)
    data = batch()
    error = relative(made.collect(data, ["logits"])["logits"].full(), model(data["input_ids"]).logits)
    assert 1e-4 < error < 0.1


def test_the_second_load_reads_the_cache(tmp_path: Path, capsys: Any) -> None:
    file = write_gguf(random_model("llama"), tmp_path / "m.gguf")
    first = load(file)
    capsys.readouterr()
    moved = tmp_path / "moved.gguf"
    shutil.copy(file, moved)
    second = load(moved)
    assert capsys.readouterr().err == ""
    assert first.fingerprint == second.fingerprint
    assert GGUFSource().describe(str(moved), DecoderOptions()).facts == second.facts
    assert sorted(f.name for f in cached_folder(moved).iterdir() if f.suffix in (".json", ".safetensors")) == [
        "config.json",
        "model.safetensors",
        "source.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_two_at_once_convert_once(tmp_path: Path, capsys: Any) -> None:
    file = write_gguf(random_model("llama"), tmp_path / "m.gguf")
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: gguf_convert.convert(file, "gguf:m"), range(2)))
    assert folders == {cached_folder(file)}
    assert capsys.readouterr().err.count("dequantising") == 1


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(random_model("llama"), tmp_path / "m.gguf")
    leftover = cached_folder(file).parent / ".x.tmp-1"
    leftover.mkdir(parents=True)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf_convert, "save_tokenizer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(file)
    assert not is_converted(file)
    assert [f.name for f in cached_folder(file).parent.iterdir() if f.is_dir()] == []
    assert load(file).facts.layers == LAYERS


def test_the_tokenizer_travels_alone(tmp_path: Path) -> None:
    made = load(write_gguf(random_model("llama"), tmp_path / "m.gguf"))
    made.save_processor(str(tmp_path / "student"))
    alone = Tokenizer.from_file(str(tmp_path / "student" / "tokenizer.json"))
    assert alone.encode("ab c").ids == made.processor()("ab c")["input_ids"] == [5, 6]


def test_the_head_of_the_model_can_be_cut(tmp_path: Path) -> None:
    file = write_gguf(random_model("llama"), tmp_path / "m.gguf")
    options = GGUFSource().tiny(DecoderOptions())
    assert GGUFSource().describe(str(file), options).facts.layers == 2
    assert load(file, layers=2).facts.layers == 2


def test_tensors_without_a_use_are_an_error(tmp_path: Path) -> None:
    model: Any = random_model("llama")
    model.model.layers[0].mlp.gate_proj.bias = torch.nn.Parameter(torch.ones(48))
    file = write_gguf(model, tmp_path / "m.gguf")
    with pytest.raises(PlanError, match=r"no use for: blk\.0\.ffn_gate\.bias"):
        GGUFSource().describe(str(file), DecoderOptions())
    with pytest.raises(PlanError, match=r"holds 30 tensors, the architecture has a use for 29"):
        load(file)


def test_missing_tensors_are_an_error(tmp_path: Path) -> None:
    model: Any = random_model("llama")
    model.model.layers[1].mlp.up_proj.weight = None
    file = write_gguf(model, tmp_path / "m.gguf")
    with pytest.raises(PlanError, match=r"lacks tensors of its architecture: blk\.1\.ffn_up\.weight"):
        GGUFSource().describe(str(file), DecoderOptions())
    with pytest.raises(UsageError, match=r"lacks tensors of its architecture: model\.layers\.1\.mlp\.up_proj"):
        load(file)


def test_the_plan_names_a_tensor_that_does_not_fit_and_both_shapes(tmp_path: Path) -> None:
    """h16, for GGUF files."""
    file = write_gguf(random_model("llama"), tmp_path / "m.gguf")
    data = file.read_bytes()
    key = b"llama.vocab_size"
    at = data.index(key) + len(key) + 4
    file.write_bytes(data[:at] + struct.pack("<I", 60) + data[at + 4 :])
    with pytest.raises(PlanError, match=r"token_embd\.weight has the shape \(61, 32\), the metadata imply \(60, 32\)"):
        GGUFSource().describe(str(file), DecoderOptions())


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"expert_count": 8}, "mixture of 8 experts"),
        ({"attention.sliding_window": 8}, "sliding window"),
        ({"rope.dimension_count": 4}, "only part of each head"),
        ({"rope.scaling.type": "longrope"}, "rotary scaling 'longrope'"),
        ({"attention.value_length": 4}, "different widths"),
        ({"attention.key_length_mla": 4}, r"llama\.attention\.key_length_mla \(4\) is not known"),
        ({"rope.dimension_sections": 4}, r"llama\.rope\.dimension_sections \(4\) is not known"),
        ({"attention.scale": 0.5}, r"llama\.attention\.scale is 0\.5, which is not read"),
        ({"rope.scaling.attn_factor": 0.5}, "attn_factor is 0.5 with scaling 'none', expected yarn"),
        ({"logit_scale": 4.0}, r"llama\.logit_scale is 4\.0"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(facts: dict[str, Any], message: str, tmp_path: Path) -> None:
    """h05: no key of an architecture is passed over."""
    file = write_gguf(random_model("llama"), tmp_path / "m.gguf", **facts)
    with pytest.raises(UsageError, match=message):
        GGUFSource().describe(str(file), DecoderOptions())
    with pytest.raises(UsageError, match=message):
        load(file)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "rwkv7")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UsageError, match="GGUF architecture 'rwkv7' is not supported; known: llama, qwen2, qwen3"):
        GGUFSource().describe(str(tmp_path / "m.gguf"), DecoderOptions())


def test_the_header_is_read_without_the_tensors(tmp_path: Path) -> None:
    model = random_model("llama")
    header = gguf_header(write_gguf(model, tmp_path / "m.gguf"))
    assert header.metadata["tokenizer.ggml.tokens"] == Length(61)
    assert header.metadata["tokenizer.ggml.merges"] == Length(2)
    assert header.fact("block_count") == LAYERS
    entry = header.tensors["blk.0.ffn_down.weight"]
    assert (entry.shape, entry.kind) == ((32, 48), "F32")
    raw = np.fromfile(tmp_path / "m.gguf", dtype="<f4", offset=entry.start, count=entry.elements)
    wanted = model.get_parameter("model.layers.0.mlp.down_proj.weight").detach().numpy()
    assert np.array_equal(raw.reshape(entry.shape), wanted)


def tensor_offset(data: bytes) -> int:
    """Where the offset of the first tensor is written: after its name, rank, dimensions and type."""
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight")
    rank = struct.unpack_from("<I", data, at)[0]
    return at + 4 + 8 * rank + 4


def damaged(data: bytes) -> dict[str, bytes]:
    def put(at: int, form: str, value: int) -> bytes:
        changed = bytearray(data)
        struct.pack_into(form, changed, at, value)
        return bytes(changed)

    offset = tensor_offset(data)
    return {
        "empty": b"",
        "not gguf": b"NOPE" + data[4:],
        "cut header": data[:200],
        "cut data": data[:-64],
        "version": put(4, "<I", 99),
        "many tensors": put(8, "<Q", 2**60),
        "many entries": put(16, "<Q", 2**60),
        "long key": put(24, "<Q", 2**62),
        "tensor beyond the end": put(offset, "<Q", 2**40),
        "unaligned tensor": put(offset, "<Q", 1),
        "overlapping tensors": put(offset, "<Q", 64),
        "unknown type": put(offset - 4, "<I", 9999),
        "huge dimension": put(offset - 12, "<Q", 2**61),
    }


@pytest.mark.parametrize("case", sorted(damaged(b"GGUF" + b"token_embd.weight" + struct.pack("<IQQIQ", 2, 1, 1, 0, 0))))
def test_damaged_files_are_usage_errors(case: str, tmp_path: Path) -> None:
    file = write_gguf(random_model("llama"), tmp_path / "m.gguf")
    file.write_bytes(damaged(file.read_bytes())[case])
    for call in (lambda: GGUFSource().describe(str(file), DecoderOptions()), lambda: load(file)):
        with pytest.raises(UsageError, match="GGUF file"):
            call()


def test_random_damage_never_ends_in_a_traceback(tmp_path: Path) -> None:
    file = write_gguf(random_model("llama"), tmp_path / "m.gguf")
    data = file.read_bytes()
    end = data.index(b"ffn_norm")
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.integers(4, end, size=3):
            changed[at] = rng.integers(0, 256)
        file.write_bytes(changed)
        try:
            gguf_header(file)
        except UsageError:
            continue


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist.*\n.*gguf:FILE"):
        GGUFSource().describe(str(tmp_path / "no.gguf"), DecoderOptions())


def test_the_note_says_where_it_came_from(tmp_path: Path) -> None:
    file = write_gguf(random_model("llama"), tmp_path / "m.gguf")
    load(file)
    note = json.loads((cached_folder(file) / "source.json").read_text())
    assert note["file"] == "m.gguf"
    assert note["types"] == {"F32": 29}
