"""Inputs that are text: configurations, ``--set``, records of corpora, tokenizers, descriptions of models, runs."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.faults.fuzzing import mutate
from benchmarks.faults.fuzzing.harness import Target

CONFIG: dict[str, Any] = {
    "recipe": "mohawk",
    "teacher": "hf:teacher",
    "student": {"target": "dm2", "options": {"layers": {"every": 2}}},
    "data": {"ref": "text:corpus", "sample": {"length": 64}, "options": {"field": "text", "heldout": 0.1}},
    "budget": 3000,
    "stages": {
        "hidden": {
            "units": 512,
            "batch": {"size": 4, "steps": {}},
            "optimiser": {
                "algorithm": "adamw",
                "lr": 1e-3,
                "schedule": {"name": "wsd"},
                "options": {"betas": [0.9, 0.9]},
            },
            "validation": {"samples": 4, "every": 2, "keep": "best"},
            "phases": [{"from": 0.5, "set": {"matches.hidden.weight": 0.5}}],
            "until": {"plateau": {"window": 10, "change": 0.1}, "seconds": 20},
            "ema": 0.99,
        },
        "own": {
            "matches": {"m": {"student": "logits", "objective": "kl", "weight": {"start": 0, "end": 1}}},
            "trains": {"all": {"lr": 0.5}},
            "epochs": 1.5,
        },
    },
    "gates": {"perplexity_ratio": {"max": 1.2}},
    "evaluate": {"samples": 4, "batch": 2, "curve": {"samples": 2, "every": 10}},
    "export": {"profiles": ["cpu"], "options": {"prefill": [4]}},
    "runtime": {"threads": 1, "cache_gb": 1.0, "tensorboard": False},
    "seed": 3,
}


def _config_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch.config.load import load_config
    from xarch.config.yaml_text import dump_yaml

    file, kind = folder / "run.yaml", rng.randrange(10)
    if kind < 5:
        data = mutate.tree(rng, CONFIG)
        try:
            file.write_text(dump_yaml(data), encoding="utf-8", errors="replace")
        except (RecursionError, ValueError):
            file.write_text(mutate.as_json(data))
    elif kind < 8:
        file.write_bytes(mutate.text(rng, dump_yaml(CONFIG)))
    elif kind == 8:
        file.write_text(_aliases(rng))
    else:
        file.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/proc/self/mem", str(folder), str(file), "/nowhere")))
    load_config(str(file))


def _aliases(rng: random.Random) -> str:
    width, levels = rng.choice((2, 9, 40)), rng.choice((3, 9, 30))
    lines = ["a0: &a0 [1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    lines.append(
        rng.choice(("stages: *a2", "loop: &l [*l]", "m: {<<: *a0}", "x: !!python/name:os.system y", "seed: *no"))
    )
    return "\n".join(lines)


def _set_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch.config.load import load_config

    names, sets = _dotted(CONFIG), []
    for _ in range(rng.choice((1, 1, 2, 5))):
        name = rng.choice(names) if rng.random() < 0.85 else rng.choice(mutate.TEXTS)
        value = mutate.odd(rng)
        try:
            text = str(value) if rng.random() < 0.5 else mutate.as_json(value)
        except ValueError:
            text = "9" * 500
        item = f"{name}={text}"
        sets.append(
            item if rng.random() < 0.9 else mutate.content(rng, item.encode("utf-8", "replace")).decode("latin-1")
        )
    load_config(CONFIG if rng.random() < 0.5 else "mohawk", sets=sets)


def _dotted(data: Any, above: str = "") -> list[str]:
    found = []
    for key, value in data.items() if isinstance(data, dict) else ():
        found += [f"{above}{key}", *_dotted(value, f"{above}{key}.")]
    return found


def _prepare_records(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"text": f"row {i} says hello to nobody in particular", "meta": {"n": i, "t": ["a", None]}} for i in range(80)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "b.json").write_text(json.dumps(rows))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes()))
    (folder / "d.html").write_text(
        "<html><body><pre>  x  </pre>" + "<p>words &amp; words</p>\n" * 80 + "</body></html>"
    )
    table = pa.table({"text": [row["text"] for row in rows], "n": list(range(80))})
    pq.write_table(table, folder / "e.parquet", row_group_size=30)
    pq.write_table(table, folder / "f.parquet", compression="zstd", use_dictionary=False)
    _text_bombs(folder / "bombs")
    nested = pa.table({"a": [{"text": row["text"]} for row in rows]})
    pq.write_table(nested, folder / "g.parquet")


def _records_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch import DataRequest
    from xarch_text.options import TextOptions
    from xarch_text.provider import TextData

    source = rng.choice(sorted(p for p in prepared.iterdir() if p.is_file()))
    file = folder / source.name
    if rng.random() < 0.05:
        file = rng.choice(sorted((prepared / "bombs").iterdir()))
    elif source.suffix in (".jsonl", ".json") and rng.random() < 0.6:
        rows = [json.loads(line) for line in (prepared / "a.jsonl").read_text().splitlines()]
        rows = [mutate.tree(rng, row) if rng.random() < 0.5 else row for row in rows]
        lines = [mutate.as_json(row) for row in rows]
        file.write_text("\n".join(lines) if source.suffix == ".jsonl" else f"[{','.join(lines)}]")
    else:
        file.write_bytes(mutate.content(rng, source.read_bytes()))
    field = "a.text" if source.name == "g.parquet" else "text"
    options = TextOptions(tokenizer="bytes", field=field, skip_limit=rng.choice((0.0, 0.2, 1.0)))
    data = TextData()
    data.describe(DataRequest(str(file), options))
    for split in ("heldout", "train"):
        request = DataRequest(str(file), options, split=split, samples=2, sample={"length": 16})
        for _ in islice(data.open(request), 8):
            pass


def _text_bombs(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    with gzip.open(folder / "a.txt.gz", "wb", compresslevel=1) as out:
        for _ in range(1200):
            out.write(b" a" * (1 << 18))
    nested = '{"text": ' + "[" * 900 + "]" * 900 + "}\n"
    (folder / "b.jsonl").write_text(nested + '{"text": [' + "[]," * 3_000_000 + "0]}\n")
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 4096), pa.array(["x" * (8 << 20)]))
    pq.write_table(pa.table({"text": long}), folder / "c.parquet")
    (folder / "d.html").write_text("<p>" + "<a " + "x" * 6_000_000)
    (folder / "e.html").write_text("<pre>" + " " * 3_000_000 + "x" + "\t" * 1_000_000)
    (folder / "f.json").write_text("[" + '{"text": "' + "x" * 80_000_000)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TEMPLATES = (
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ 'a' * 10**10 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% include '/etc/passwd' %}",
)


def _prepare_teacher(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocab = {c: i for i, c in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _tokenizer_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch_hf.tokenizer import load_tokenizer
    from xarch_text.encoding import Encoder
    from xarch_text.library import Piece

    for name in TOKENIZER_FILES:
        if (prepared / name).is_file():
            shutil.copy(prepared / name, folder / name)
    name = rng.choice(TOKENIZER_FILES)
    text = (prepared / name).read_text(encoding="utf-8") if (prepared / name).is_file() else "{{ messages }}"
    if name.endswith(".jinja"):
        (folder / name).write_text(rng.choice(TEMPLATES))
    elif rng.random() < 0.7:
        (folder / name).write_text(mutate.as_json(mutate.tree(rng, json.loads(text))))
    else:
        (folder / name).write_bytes(mutate.text(rng, text))
    Encoder(load_tokenizer(folder), "teacher", "eos", 258)(Piece("a", "Some text, 123 \u202e ok", True, True))


def _model_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch_hf.source import HFOptions, HFSource

    for name in ("config.json", "generation_config.json", "model.safetensors", *TOKENIZER_FILES):
        if (prepared / name).is_file():
            os.link(prepared / name, folder / name)
    name = rng.choice(("config.json", "config.json", "generation_config.json"))
    text = (folder / name).read_text()
    (folder / name).unlink()
    if rng.random() < 0.8:
        (folder / name).write_text(mutate.as_json(mutate.tree(rng, json.loads(text))))
    else:
        (folder / name).write_bytes(mutate.text(rng, text))
    HFSource().describe(str(folder), HFOptions())


RUN = """recipe: mohawk
teacher: hf:{tmp}/llama
student: {{target: dm2}}
data: {{ref: "text:{tmp}/corpus", sample: {{length: 32}}}}
budget: 600
stages: {{init: {{units: 64, batch: 2}}, choose: {{options: {{tokens: 64}}}}, logits: {{validation: {{samples: 2}}}}}}
evaluate: {{samples: 2, batch: 2, sample: {{length: 32}}}}
export: {{profiles: []}}
runtime: {{threads: 1, tensorboard: false}}
"""


def _prepare_run(folder: Path) -> None:
    (folder / "llama").mkdir()
    _prepare_teacher(folder / "llama")
    (folder / "corpus").mkdir()
    rng = random.Random(0)
    for i in range(20):
        words = [rng.choice(("one", "two", "three", "four", "five", "six")) for _ in range(600)]
        (folder / "corpus" / f"{i}.txt").write_text(" ".join(words))
    (folder / "small.yaml").write_text(RUN.format(tmp=folder))
    command = [sys.executable, "-m", "xarch", "convert", str(folder / "small.yaml"), "--out", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the run to be damaged could not be made: {done.stderr[-2000:]}")


LINKS = ("/dev/zero", "/dev/full", "/etc/passwd", "/nowhere", "/proc/self/mem", ".", "..", "self")


def _seal_again(run: Path) -> None:
    """Record mutated files as if xarch had written them, so that their readers are reached."""
    from xarch.errors import UsageError
    from xarch.files.manifest import MANIFEST, entry_of, read_self_sealed, self_sealed

    for path in (*run.rglob(MANIFEST), run / "status.json"):
        with contextlib.suppress(UsageError, OSError, ValueError, TypeError):
            if path.name == MANIFEST:
                body = read_self_sealed(path)
                for name, entry in body["files"].items():
                    entry |= entry_of(path.parent / name) if (path.parent / name).is_file() else {}
            else:
                body = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(body, dict):
                    continue
                body.pop("sha256", None)
            path.write_text(self_sealed(body), encoding="utf-8")


def _run_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch.cli.app import run as command_line

    run = folder / "run"
    shutil.copytree(prepared / "run", run, symlinks=True)
    files = [
        p for p in sorted(run.rglob("*")) if p.is_file() and p.suffix in (".json", ".jsonl", ".yaml", ".safetensors")
    ]
    wanted = [p for p in files if "checkpoints" not in p.parts] if rng.random() < 0.8 else files
    for file in rng.sample(wanted, rng.choice((1, 1, 2))):
        kind = rng.randrange(10)
        if kind < 2:
            file.unlink(missing_ok=True)
            link = rng.choice(LINKS)
            if link == "self" and rng.random() < 0.5:
                os.mkfifo(file)
            else:
                file.symlink_to(file if link == "self" else link)
        elif kind < 7 and file.suffix == ".json" and file.is_file() and not file.is_symlink():
            file.write_text(mutate.as_json(mutate.tree(rng, json.loads(file.read_text()))))
        elif file.is_file() and not file.is_symlink():
            file.write_bytes(mutate.content(rng, file.read_bytes()))
    if rng.random() < 0.7:
        _seal_again(run)
    arguments = rng.choice(
        (["inspect", str(run)], ["report", str(run)], ["bench", str(run)], ["inspect", f"run:{run}"])
    )
    code = command_line(arguments)
    if code == 1:
        raise RuntimeError(f"xarch {arguments[0]} failed unexpectedly")
    if code:
        from xarch.errors import UsageError

        raise UsageError(f"exit {code}")


TARGETS = (
    Target("configuration", 2000, lambda folder: None, _config_case),
    Target("--set", 2000, lambda folder: None, _set_case),
    Target("corpus records", 1200, _prepare_records, _records_case),
    Target("tokenizer and template", 700, _prepare_teacher, _tokenizer_case),
    Target("model configuration", 500, _prepare_teacher, _model_case),
    Target("run folder", 400, _prepare_run, _run_case),
)
