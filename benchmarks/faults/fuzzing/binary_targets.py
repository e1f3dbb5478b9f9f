"""Inputs of weights and of fields."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.fuzzing import mutate
from benchmarks.faults.fuzzing.harness import Target

SIDE = 6


def _prepare_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {"a": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0)}
    save_file(tensors, folder / "a.safetensors", {"format": "pt", "note": "x"})
    torch.save({"state_dict": tensors}, folder / "a.pt")


def _weights_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch import load_weights

    whole = (prepared / "a.safetensors").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    file = folder / "a.safetensors"
    if rng.random() < 0.6:
        head = mutate.as_json(mutate.tree(rng, json.loads(whole[8 : 8 + size]))).encode()
        stated = len(head) if rng.random() < 0.9 else rng.choice(mutate.NUMBERS[:12]) % 2**63
        file.write_bytes(struct.pack("<Q", stated) + head + whole[8 + size :])
    elif rng.random() < 0.03:
        _many_tensors(file)
    else:
        file.write_bytes(mutate.content(rng, whole))
    load_weights(file)


def _many_tensors(file: Path) -> None:
    """A header of 90 MB that describes tensors without bytes."""
    entries = ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(1_700_000))
    head = f"{{{entries}}}".encode()
    file.write_bytes(struct.pack("<Q", len(head)) + head)


def _prepare_gguf(folder: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(folder / "a.gguf"), "llama")
    width, heads, inner, vocab = 32, 4, 64, 300
    numbers: tuple[tuple[Callable[[Any], object], float], ...] = (
        (writer.add_block_count, 1),
        (writer.add_context_length, 128),
        (writer.add_embedding_length, width),
        (writer.add_feed_forward_length, inner),
        (writer.add_head_count, heads),
        (writer.add_head_count_kv, heads),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_freq_base, 10000.0),
        (writer.add_rope_dimension_count, width // heads),
        (writer.add_vocab_size, vocab),
    )
    for put, value in numbers:
        put(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(vocab)])
    writer.add_token_types([1] * vocab)
    writer.add_token_merges(["t 1", "t 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {
        "token_embd": (vocab, width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
    }
    shapes |= {f"blk.0.attn_{n}": (width, width) for n in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch_hf.gguf_source import GGUFSource

    whole = (prepared / "a.gguf").read_bytes()
    # The metadata comes first; tensors make up most of the file and mean little here.
    head = mutate.content(rng, whole[:6000]) if rng.random() < 0.85 else whole[:6000]
    body = whole[6000:] if rng.random() < 0.9 else mutate.content(rng, whole[6000:])
    (folder / "a.gguf").write_bytes(head + body)
    GGUFSource().describe(str(folder / "a.gguf"), GGUFSource.Options())


def _arrays() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    cube = (SIDE,) * 3
    return {
        "voxels": {
            "sigma_raw": rng.normal(size=cube).astype("f4"),
            "sh": rng.normal(size=(*cube, 3, 4)).astype("f2"),
            "aabb": np.array([-1, -1, -1, 1, 1, 1.0]),
            "order": np.array("xyz"),
            "sigma_clip": np.array([-2.0, 7.0]),
            "background": np.array([1.0, 1.0, 1.0]),
            "occupancy": np.ones((4, 4, 4), bool),
        },
        "linear": {
            "sigma": rng.uniform(0, 9, size=cube).astype("f4"),
            "rgb": rng.uniform(size=(*cube, 3)).astype("f4"),
            "aabb": np.array([-1, -1, -1, 1, 1, 1.0]),
        },
        "svox2": {
            "links": np.arange(SIDE**3, dtype=np.int32).reshape(cube) - 20,
            "density_data": rng.uniform(0, 3, (SIDE**3, 1)).astype("f4"),
            "sh_data": rng.normal(size=(SIDE**3, 27)).astype("f2"),
            "radius": np.ones(3, "f4"),
            "center": np.zeros(3, "f4"),
            "basis_type": np.array(1),
        },
    }


def _prepare_arrays(folder: Path) -> None:
    for name, arrays in _arrays().items():
        np.savez_compressed(folder / f"{name}.npz", allow_pickle=False, **arrays)


def _prepare_bombs(folder: Path) -> None:
    for name, of in (("sigma_raw", "voxels"), ("links", "svox2")):
        _bomb(folder / f"{name}.npz", name, _arrays()[of])


def _read_field(file: Path, **how: Any) -> None:
    """What a conversion does with a field before its first step."""
    from xarch_pvd.source.source import FieldOptions, FieldSource

    source = FieldSource()
    source.describe(str(file), FieldOptions(**how))
    import torch

    teacher = source.load(str(file), FieldOptions(**how), device=torch.device("cpu"), dtype=torch.float32)
    x = torch.rand(4, 3)
    teacher.field(x, torch.nn.functional.normalize(x + 0.1, dim=-1))


def _npz_bytes_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    source = rng.choice(sorted(prepared.iterdir()))
    (folder / "a.npz").write_bytes(mutate.content(rng, source.read_bytes()))
    _read_field(folder / "a.npz")


def _npz_arrays_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    arrays = dict(rng.choice(list(_arrays().values())))
    if rng.random() < 0.02:
        _read_field(rng.choice(sorted(prepared.iterdir())))
        return
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(sorted(arrays))
        arrays[name] = _other_array(rng, arrays[name])
        if rng.random() < 0.1:
            del arrays[name]
        if not arrays:
            break
    np.savez(folder / "a.npz", allow_pickle=False, **arrays)
    _read_field(folder / "a.npz")


def _other_array(rng: random.Random, array: np.ndarray) -> np.ndarray:
    kind = rng.randrange(9)
    if kind == 0:
        return (
            array.astype(rng.choice(("i8", "u1", "f8", "f2", "c8", "?", "i2", "u8")))
            if array.dtype.kind != "U"
            else array
        )
    if kind == 1:
        return np.array(rng.choice(("text", "", "xyz")))
    if kind == 2:
        return array.reshape(-1)[: rng.randrange(array.size + 1)]
    if kind == 3:
        return array[..., None] if rng.random() < 0.5 else array[None]
    if kind == 4 and array.dtype.kind == "f" and array.size:
        changed = array.copy().reshape(-1)
        changed[rng.randrange(changed.size)] = rng.choice((np.nan, np.inf, -np.inf, 6e4, -6e4, 1e-30))
        return changed.reshape(array.shape)
    if kind == 5 and array.dtype.kind in "iu" and array.size:
        changed = array.astype("i8").reshape(-1)
        changed[rng.randrange(changed.size)] = rng.choice((-(2**31), -(2**63), 2**31, 2**40, -1, 10**6))
        return changed.reshape(array.shape)
    if kind == 6:
        return np.zeros(rng.choice(((), (0,), (1,), (0, 3), (2, 2, 2), (1, 1, 1), (3, 2, 2))), array.dtype)
    if kind == 7 and array.dtype.kind == "f":
        return array * rng.choice((0, -1, 1e4, 1e30, 1e300))
    return np.swapaxes(array, 0, -1) if array.ndim > 1 else np.repeat(array.reshape(-1), 2)


def _bomb(file: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    """An archive of megabytes with one array of gigabytes, beside intact ones."""
    header, shape = io.BytesIO(), (800, 800, 800)
    np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, array in arrays.items():
            if other != name:
                content = io.BytesIO()
                np.save(content, array)
                archive.writestr(f"{other}.npy", content.getvalue())
        with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
            stream.write(header.getvalue())
            block = b"\0" * 4_096_000
            for _ in range(4 * 800**3 // len(block)):
                stream.write(block)


ARCHS = {
    "tensors": {"resolution": 5, "degree": 2},
    "hash": {"levels": 2, "log2_size": 5, "finest": 8, "base": 4, "hidden": 8},
    "mlp": {"layers": 2, "width": 8, "frequencies": 2},
    "vm": {"resolution": 4, "density_rank": 2, "colour_rank": 2},
    "cp": {"resolution": 4, "density_rank": 2, "colour_rank": 2},
    "hash+vm": {
        "levels": 2,
        "log2_size": 5,
        "finest": 8,
        "base": 4,
        "resolution": 4,
        "density_rank": 2,
        "colour_rank": 2,
    },
}


def _prepare_fields(folder: Path) -> None:
    import torch

    from xarch_field.facts import ViewFacts
    from xarch_pvd.source.field_file import save_field_file
    from xarch_pvd.source.reference import open_field
    from xarch_pvd.targets.representations import OPTIONS, build_field
    from xarch_pvd.targets.representations.records import to_file

    torch.manual_seed(0)
    for name, options in ARCHS.items():
        chosen = OPTIONS[name].model_validate(options)
        field = build_field(name, chosen, aabb=[[-1.0] * 3, [1.0] * 3], occupancy=torch.ones(4, 4, 4, dtype=torch.bool))
        views = ViewFacts(poses=tuple((1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 3.0) for _ in range(2)))
        save_field_file(folder / f"{name}.safetensors", to_file(field), views, {"note": "x"})
    edits = [{"erase": {"box": [[-1, -1, -1], [0, 0, 0]]}}]
    edited = open_field(str(folder / "vm.safetensors"), edits=edits)
    save_field_file(folder / "edited.safetensors", edited.record, edited.views, {})
    np.savez(folder / "grid.npz", allow_pickle=False, **_arrays()["svox2"])
    foreign = open_field(str(folder / "grid.npz"))
    save_field_file(folder / "svox2.safetensors", foreign.record, foreign.views, {})
    (folder / "grid.npz").unlink()


def _field_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch_pvd.source.field_file import KEY

    source = rng.choice(sorted(prepared.iterdir()))
    whole = source.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    head = json.loads(whole[8 : 8 + size])
    said = json.loads(head["__metadata__"][KEY])
    if rng.random() < 0.15:
        said["options"] |= rng.choice(BOMBS)
    elif rng.random() < 0.9:
        said = mutate.tree(rng, said)
    else:
        names = [name for name in head if name != "__metadata__"]
        one, two = rng.choice(names), rng.choice(names)
        head[one], head[two] = head[two], head[one]
    head["__metadata__"][KEY] = mutate.as_json(said)
    text = json.dumps(head).encode()
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    _read_field(folder / "a.safetensors")


BOMBS: tuple[dict[str, Any], ...] = (
    {"resolution": 1500},
    {"resolution": 100_000},
    {"resolution": [16000, 16000, 16000]},
    {"width": 60_000, "layers": 16},
    {"log2_size": 24, "levels": 32, "features": 8},
    {"sizes": [1 << 28] * 32, "levels": 32},
    {"sizes": [1 << 40]},
    {"density_rank": 4096, "colour_rank": 4096, "resolution": 16000},
    {"degree": 4, "resolution": 3000},
    {"finest": 1e300},
)


TARGETS = (
    Target("safetensors", 1500, _prepare_weights, _weights_case),
    Target("GGUF", 1200, _prepare_gguf, _gguf_case),
    Target("npz bytes", 800, _prepare_arrays, _npz_bytes_case),
    Target("npz arrays", 1000, _prepare_bombs, _npz_arrays_case),
    Target("field header", 1500, _prepare_fields, _field_case),
)
