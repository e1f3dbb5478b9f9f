"""Small pairs and batches generated in code: no downloads, built within a second."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

from xarch import Batch


def tiny_pairs(file: Path, *, pairs: int = 400) -> str:
    """Write questions about what someone has, with their answers, and return the reference ``pairs:FILE``."""
    names, things = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn"), ("apples", "books", "coins", "dogs", "eggs")
    lines = []
    for i in range(pairs):
        name, thing, count = names[i % 6], things[i * 7 % 5], i % 19
        facts = f"{names[(i + 1) % 6]} has {(i * 5) % 17} {thing}, {name} has {count} {thing}"
        lines.append(json.dumps({"source": f"{facts}. {name}?", "target": f"{count} {thing}"}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"pairs:{file}"


def pair_batch(vocab: int, samples: int = 2, seed: int = 0) -> Batch:
    """Return random pairs: sources of 9 tokens and fewer, and 6 decoder tokens."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    source_BS, decoder_BT = (torch.randint(0, vocab, (samples, n), generator=generator) for n in (9, 6))
    lengths_B1 = 9 - torch.arange(samples)[:, None] % 4
    mask_BS = (torch.arange(9) < lengths_B1).long()
    return Batch(
        {"input_ids": source_BS * mask_BS, "attention_mask": mask_BS, "decoder_input_ids": decoder_BT}, samples * 15
    )


def tiny_encdec(folder: Path) -> str:
    """Write an encoder-decoder of a random Llama's two layers, and return the run as reference ``run:FOLDER``."""
    shutil.copytree(Path(_made().name) / "run", folder / "run")
    return f"run:{folder / 'run'}"


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with the run, made once a process and removed at its end."""
    from xarch import convert
    from xarch_decoder.testing import tiny_llama

    made = tempfile.TemporaryDirectory(prefix="xarch-tiny-")
    values = {
        "teacher": tiny_llama(Path(made.name) / "llama", layers=2),
        "student.target": "encdec",
        "data.ref": tiny_pairs(Path(made.name) / "pairs.jsonl"),
        "data.options": {"tokenizer": "bytes"},
        "data.sample": {"source": 48, "target": 16},
        "stages.cross.skip": True,
        "stages.hints.skip": True,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "export.profiles": [],
        "evaluate.controls": False,
        "tiny": True,
    }
    convert(overrides=values, out=Path(made.name) / "run")
    return made
