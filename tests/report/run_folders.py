"""A run folder as a conversion of a 30-layer decoder leaves it, with plausible figures."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from xarch.config.schema import RunConfig
from xarch.files.run_dir import RunDir
from xarch.planning.plan import FORMAT, Plan

LAYERS = 30
REPLACED = [i for i in range(LAYERS) if i % 3 == 1]
MATRIX = 589_824
STAGES = {
    "init": {"kind": "closed_form", "options": {"fit": "init"}},
    "choose": {"kind": "replacement_probe", "scope": "global"},
    "hidden": {"matches": {"mixer": {"student": "mixer_out", "objective": "l2"}}, "trains": {"mixers": {}}},
    "logits": {
        "scope": "global", "matches": {"logits": {"student": "logits", "objective": "kl"}}, "trains": {"mixers": {}},
    },
}  # fmt: skip


def stage(index: int, name: str, scope: str, units: int, **more: Any) -> dict[str, Any]:
    steps = more.pop("steps", units // 2048)
    sites = [f"blocks.{i}" for i in range(LAYERS)] if scope == "local" else []
    return {
        "index": index, "name": name, "folder": f"{index:02d}-{name}", "sites": sites, "matches": [], "trains": {},
        "units": units, "steps": steps,
        "cache": {"use": False, "bytes": 0, "why": "one pass"}, "memory_bytes": 1_450_000_000, "seconds": units / 120,
        **more,
    }  # fmt: skip


def match(name: str, tap: str, objective: str, site: str | None = None) -> dict[str, Any]:
    return {
        "match": name, "label": name, "site": site, "student": [tap], "right": tap, "objective": objective,
        "connector": None, "weight": 1.0, "mask": None, "units": "", "parameters": 0, "layouts": ["BLD", "BLD"],
    }  # fmt: skip


def make_plan(**changes: Any) -> dict[str, Any]:
    """A plan that the real schema accepts."""
    blocks = [f"blocks.{i}" for i in range(LAYERS)]
    stages = [
        stage(1, "init", "local", 8192, steps=16),
        stage(2, "choose", "global", 4096, steps=2),
        stage(
            3, "hidden", "local", 204_800, steps=100, trains={"mixers": 50_400_000},
            matches=[match("mixer", f"{b}.mixer_out", "l2", b) for b in blocks],
        ),
        stage(
            4, "logits", "global", 102_400, steps=50, trains={"mixers": 16_800_000},
            matches=[match("logits", "logits", "kl")],
        ),
    ]  # fmt: skip
    config = RunConfig(
        recipe="mohawk", teacher="zoo:smollm2-135m", budget=320_000,
        student={"target": "dm2"}, export={"profiles": ["cpu", "npu"]}, stages=STAGES,
        gates={"perplexity_ratio": {"max": 1.2}, "kl": {"max": 0.3}},
    )  # fmt: skip
    plan = {
        "format": FORMAT, "xarch": "0.1.0", "name": "smollm2-to-dm2", "unit": "token",
        "teacher": {
            "ref": "zoo:smollm2-135m", "resolved": "gguf:SmolLM2-135M-Instruct.Q4_1.gguf", "adapter": "gguf",
            "title": "SmolLM2-135M-Instruct, 4-bit GGUF", "family": "decoder", "parameters": 134_515_008,
            "weight_bytes": 98_100_000, "facts": {"layers": LAYERS, "width": 576, "vocab": 49_152},
            "details": {"licence": "Apache-2.0"},
        },
        "teachers": {},
        "student": {
            "target": "dm2", "title": "dm2", "plugin": "mohawk", "family": "decoder",
            "options": {"layers": 10, "state": 64},
            "parameters": 184_000_000, "sites": blocks,
            "copied": ["embed.weight", "norm.weight", *(f"{b}.mlp.{w}.weight" for b in blocks for w in ("up", "down"))],
            "mapped": [f"{b}.mixers.dm2.{w}" for b in blocks for w in ("in_proj.weight", "out_proj.weight")],
            "new": [f"{b}.mixers.dm2.alpha" for b in blocks], "unused": [],
            "built_from": {"family": "decoder", "facts": {"layers": LAYERS}},
        },
        "data": {
            "ref": "text:python-stdlib", "title": "Python 3.11.7 standard library, 734 files",
            "digest": "2a49a6eab819709bbb67", "unit": "token", "size": {"files": 734, "bytes": 12_118_641},
        },
        "stages": stages, "metric": "perplexity",
        "export": [
            {"profile": "cpu", "opset": 20, "graphs": ["decode_1", "prefill_64"]},
            {"profile": "npu", "opset": 17, "graphs": ["decode_1", "prefill_64"]},
        ],
        "checks": [
            {"name": "family", "state": "ok", "detail": "decoder -> decoder"},
            {"name": "matches", "state": "ok", "detail": "31 pairs of taps agree"},
            {"name": "export npu", "state": "not checked", "detail": "the family has no small copy"},
        ],
        "warnings": ["the teacher is 4-bit; its weights are dequantised once"],
        "estimates": {"seconds": 2700.0, "parts": {"stages": 2500.0, "evaluation": 200.0},
            "peak_bytes": 1_450_000_000, "disk_bytes": 1_900_000_000},
        "device": "cpu", "threads": 2, "command": "xarch convert mohawk --set budget=320000 --out runs/demo",
        "provenance": {"teacher": "recipe mohawk", "budget": "--set"},
        "plugins": {"core": "0.1.0", "hf": "0.1.0", "mohawk": "0.1.0", "text": "0.1.0"},
        "config": config.model_dump(mode="json"),
    }  # fmt: skip
    plan |= changes
    Plan.model_validate(plan)
    return plan


def metrics_rows(seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for i in range(LAYERS):
        rows.append({"stage": "01-init", "step": 16, f"site.blocks.{i}.relative_error": 0.4 + 0.01 * i})
    for step in range(1, 101):
        sites = {
            f"site.blocks.{i}": (0.5 + 0.4 * math.sin(i / 4) ** 2 + i / 40) * (0.25 + 0.75 * math.exp(-step / 22))
            * draw.uniform(0.93, 1.07)
            for i in REPLACED
        }  # fmt: skip
        loss = sum(sites.values()) / len(sites)
        rows.append(
            {"stage": "03-hidden", "step": step, "units": step * 2048, "loss": loss, "match.mixer_out": loss,
             "lr": 1e-3, "grad_norm": 0.5, **sites}
        )  # fmt: skip
    for step in range(1, 51):
        loss = 2.1 + 0.35 * math.exp(-step / 12) + draw.uniform(-0.02, 0.02)
        rows.append(
            {"stage": "04-logits", "step": step, "units": step * 2048, "loss": loss, "lr": 3e-4, "grad_norm": 1}
        )
    return rows


def curve_rows() -> list[dict[str, Any]]:
    """Perplexity comes down over the stages."""
    marks = [("start", 0), ("01-init", 16), ("02-choose", 2), *(("03-hidden", s) for s in (25, 50, 75, 100))]
    marks += [("04-logits", 25), ("04-logits", 50)]
    rows = []
    for i, (folder, step) in enumerate(marks):
        figures = {"perplexity": 34 + 60 * math.exp(-i / 2), "kl": 0.11 + math.exp(-i / 2), "bytes": 7.0}
        rows.append(
            {"stage": folder, "step": step, "units": step * 2048, "seconds": 1.5 + 80.0 * i, "cpu_seconds": 150.0 * i,
             "metric": "perplexity", "student": figures, "teacher": {"perplexity": 32.18}}
        )  # fmt: skip
    return rows


def summaries() -> dict[str, dict[str, Any]]:
    draw = random.Random(1)
    kl = {
        f"blocks.{i}": 0.004 + 0.05 * math.exp(-i / 3) + draw.uniform(0, 0.02) + (0.06 if i == 29 else 0)
        for i in range(LAYERS)
    }
    for i in REPLACED:
        kl[f"blocks.{i}"] *= 0.5
    before = {f"blocks.{i}": 0.62 + 0.1 * math.sin(i / 3) for i in REPLACED}
    after = {k: v * 0.78 for k, v in before.items()}
    base = {"units": 8192, "steps": 16, "metrics": {}, "per_site": {}, "decisions": {}, "teacher_cache": None,
            "undone": ""}  # fmt: skip
    return {
        "01-init": {
            **base, "name": "init", "kind": "closed_form", "seconds": 72.4, "metrics": {"relative_error": 0.62},
            "per_site": {"relative_error": before},
        },
        "02-choose": {
            **base, "name": "choose", "kind": "replacement_probe", "seconds": 61.0, "units": 4096,
            "per_site": {"kl": kl}, "decisions": {"layers": REPLACED},
        },
        "03-hidden": {
            **base, "name": "hidden", "kind": "gradient", "seconds": 1110.9, "units": 204_800, "steps": 100,
            "data": {"read": 240, "tokens": 204_800, "skipped_empty": 2, "skipped_not_utf8": 1}, "metrics": {
                "loss": 0.31, "match.mixer_out": 0.31, "grad_norm": 0.4,
                "validation_before": 0.842, "validation_after": 0.318, "validation_kept_after": 1.0,
            },
            "per_site": {"relative_error": after},
        },
        "04-logits": {
            **base, "name": "logits", "kind": "gradient", "seconds": 640.2, "units": 102_400, "steps": 50,
            "metrics": {"loss": 2.1, "validation_before": 2.2, "validation_after": 2.11, "validation_kept_after": 1.0},
        },
    }  # fmt: skip


def make_eval() -> dict[str, Any]:
    def figures(perplexity: float, kl: float, agree: float) -> dict[str, float]:
        return {
            "perplexity": perplexity, "cross_entropy": math.log(perplexity), "top1_accuracy": 0.41,
            "perplexity_ratio": perplexity / 32.18, "kl": kl, "kl_stderr": kl / 20, "top1_agreement": agree,
        }  # fmt: skip

    student = figures(34.16, 0.1187, 0.8134)
    prompt = 'def walk(top, topdown=True):\n    """Directory tree generator.\n\n    For each'
    return {
        "metric": "perplexity", "higher_is_better": False, "unit": "per token",
        "teacher": {"perplexity": 32.18, "cross_entropy": math.log(32.18), "top1_accuracy": 0.432}, "student": student,
        "baselines": {"before training": figures(39.88, 0.2972, 0.7071)},
        "gated": {k: student[k] for k in ("perplexity_ratio", "kl", "top1_agreement")}, "n": 8176,
        "units": {"kl": "nats/token"},
        "samples": [
            {
                "prompt": prompt,
                "teacher": " directory in the directory tree rooted at top (including top itself, but excluding\n"
                "    '.' and '..'), yields a 3-tuple\n\n        dirpath, dirnames, filenames",
                "student": " directory in the directory tree rooted at top (including top itself), yields a tuple\n\n"
                "        dirpath, dirnames, filenames\n\n    The dirpath is a string",
            },
            {"prompt": "The Python standard", "teacher": " library is a collection of", "student": " library contains"},
        ],
    }  # fmt: skip


def make_parity(passed: bool = True) -> dict[str, Any]:
    error = 3.1e-7 if passed else 0.021
    outputs = {"logits": {"max_abs": error * 40, "rel_l2": error, "cosine": 1 - error / 9}}
    cases = [{"shape": {"batch": 1, "tokens": n}, "optimised": True, "outputs": outputs} for n in (64, 77, 128)]
    failure = {
        "graph": "decode_1", "case": {"batch": 1, "tokens": 77}, "optimised": True, "output": "logits",
        "figure": "rel_l2", "seen": "0.021", "limit": "0.0001",
    }  # fmt: skip
    measures = {
        "word_errors": {"value": 0.0125, "maximum": 0.05},
        "psnr": {"value": 71.25, "minimum": 60, "unit": "dB"},
    }
    graph = {"cases": cases, "top1_agreement": 1.0, "rows": 269, "ties": 3, "measures": measures}
    return {
        "passed": passed, "limits": {"rel_l2": 1e-4, "top1_agreement": 0.999},
        "graphs": {"decode_1": graph, "prefill_64": json.loads(json.dumps(graph))},
        "failures": [] if passed else [failure],
    }  # fmt: skip


def make_profile(name: str, opset: int) -> dict[str, Any]:
    ops = {"MatMul": 271, "Mul": 402, "Add": 210, "Reshape": 120, "Sigmoid": 60, "Gather": 1, "Softplus": 10}
    graph = {"opset": opset, "ir": 10, "weight_bytes": 553_000_000, "seconds": 9.4, "ops": ops, "graph_bytes": 412_000}
    return {
        "profile": {"name": name, "provider": "CPUExecutionProvider", "max_opset": opset, "max_ir": 10,
                    "static": name == "npu", "dtype": "float32"},
        "graphs": {"decode_1": graph, "prefill_64": json.loads(json.dumps(graph))},
        "weights": {"file": "weights.onnx.data", "bytes": 553_000_000, "shared_bytes": 540_000_000},
        "bytes": 553_824_000, "seconds": {"export": 18.8, "check": 3.1, "parity": 22.5},
    }  # fmt: skip


def make_bench() -> dict[str, Any]:
    call = {"p50_ms": 31.2, "p90_ms": 33.9, "p99_ms": 40.1, "min_ms": 30.8, "runs": 50, "load_seconds": 0.61,
            "inputs": {"input_ids": [1, 1]}, "prepacked": False, "nodes_per_provider": {"CPUExecutionProvider": 1063},
            "time_per_operator": {"MatMul": 0.91}, "weight_bytes": 553_000_000}  # fmt: skip
    timed = {"p50_ms": 993.8, "p90_ms": 1010.0, "p99_ms": 1020.0, "min_ms": 990.0, "runs": 10, "unit": "token",
             "amount": 32, "per_second": 32.2, "graphs": ["decode_1"]}  # fmt: skip
    prompts = {"16": 480.1, "128": 371.2, "512": 1480.8}
    return {
        "provider": "CPUExecutionProvider", "threads": 2, "load_average": 0.41,
        "machine": {"processor": "AMD EPYC 7B13", "cores": 2, "memory_gb": 25.1},
        "graphs": {"decode_1": call, "prefill_64": {**call, "p50_ms": 182.0, "p90_ms": 190.2, "p99_ms": 201.7}},
        "cases": {
            **{f"first token, prompt of {n}": {**timed, "p50_ms": t, "per_second": 1e3 * int(n) / t,
                                               "amount": int(n), "figures": {"calls": 3}} for n, t in prompts.items()},
            "decode after 512": {**timed, "figures": {"state_bytes": 18_186_240}},
        },
    }  # fmt: skip


def make_run(root: Path, **plan_changes: Any) -> RunDir:
    """A finished run that keeps its gates."""
    run = RunDir(root)
    run.stages_dir.mkdir(parents=True)

    def put(path: Path, data: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1), encoding="utf-8")

    plan = make_plan(**plan_changes)
    put(run.plan, plan)
    run.config.write_text("teacher: zoo:smollm2-135m\nstudent:\n  target: dm2\nbudget: 320000\n", encoding="utf-8")
    put(
        run.run_json,
        {
            "xarch": "0.1.0", "versions": {"torch": "2.14.1", "onnxruntime": "1.32.0"}, "python": "3.11.7",
            "platform": "Linux-6.1-x86_64", "machine": "x86_64", "git": "60bcbe5", "device": "cpu", "threads": 2,
            "processes": 1, "plugins": plan["plugins"], "seed": 0, "started": "2026-11-24T06:55:17+0000",
        },
    )  # fmt: skip
    put(
        run.status,
        {"state": "done", "reason": "", "resume": "", "seconds": 2210.4},
    )  # fmt: skip
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in metrics_rows()), encoding="utf-8")
    run.curve.write_text("".join(json.dumps(row) + "\n" for row in curve_rows()), encoding="utf-8")
    for folder, summary in summaries().items():
        put(run.stages_dir / folder / "summary.json", summary)
    put(
        run.student / "config.json",
        {
            "format": 1, "xarch": "0.1.0", "target": "dm2", "plugin": "mohawk", "family": "decoder",
            "facts": {"layers": LAYERS}, "options": {"layers": 10}, "decisions": {"layers": REPLACED},
            "teacher": {"ref": "zoo:smollm2-135m", "title": "SmolLM2-135M-Instruct", "fingerprint": "ab" * 32},
            "parameters": 142_300_000, "sites": [f"blocks.{i}" for i in REPLACED],
        },
    )  # fmt: skip
    (run.student / "model.safetensors").write_bytes(bytes(4096))
    put(run.eval_json, make_eval())
    for target, opset in (("cpu", 20), ("npu", 17)):
        put(run.export_dir / target / "parity.json", make_parity())
        put(run.export_dir / target / "profile.json", make_profile(target, opset))
        put(run.bench_dir / f"{target}.json", make_bench())
    return run
