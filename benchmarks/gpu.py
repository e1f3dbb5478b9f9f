"""Everything that needs a GPU, in one command.

    pip install -e '.[dev,cuda]' --no-build-isolation
    python benchmarks/gpu.py --data "text:corpus/*.jsonl"
    python benchmarks/gpu.py --device cpu --rehearse          # a few minutes: the same parts, scaled down, on a CPU

Parts, each in processes of its own, in this order:

``kernels``  every kernel against mamba-ssm and against materialising, bfloat16 and float32, with the shapes of Phi-1.5
             and Llama-3.2-1B; right results and gradients come first (:mod:`benchmarks.kernels`).
``speed``    tokens per second of the matrix and hidden stages (``benchmarks/conversion_speed.py``).
``hybrid``   SmolLM2-135M with 10 of 30 layers replaced, over seeds, quality against teacher and untrained start.
``full``     the same with all layers replaced, by the paper's schedule.
``tail``     DeiT-LT at the size of its paper on long-tailed CIFAR-100, with ``--pictures images:CIFAR100``: a teacher,
             then ViT-B with and without re-weighting (``benchmarks/quality/deit_lt_cifar100_paper.yaml``).

Interrupted runs resume. Results are written to ``benchmarks/out/*_cuda.json``; ``python -m benchmarks publish NAME``
publishes one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import page  # noqa: E402
from benchmarks.smollm2_hybrid import measure  # noqa: E402
from benchmarks.store import SCRATCH, Store, header  # noqa: E402

PARTS = ("kernels", "speed", "hybrid", "full", "tail")
REHEARSED = {
    "data.options.size": 32,
    "data.options.tail.largest": 100,
    "data.options.augment.repeats": 1,
    "data.workers": 0,
    "evaluate.metric_options.groups": "[3, 7]",
    "evaluate.samples": 100,
    "stages.distil.epochs": 0.05,
    "stages.distil.batch.size": 8,
    "stages.distil.micro_batch": "null",
    "runtime.tensorboard": "false",
}
"""The studies of ``tail`` in a few steps on digits."""
RECIPES = {"hybrid": "smollm2-hybrid", "full": "mohawk-paper"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--data", default="text:python-stdlib", help="training text of the conversions")
    parser.add_argument("--pictures", help="CIFAR-100 for the part `tail`, which is left out without it: images:FOLDER")
    parser.add_argument("--hybrid-tokens", type=int, default=50_000_000)
    parser.add_argument("--full-tokens", type=int, default=500_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rehearse", action="store_true", help="short lengths, a teacher of two layers, few tokens")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="folder of the conversions")
    parser.add_argument("--results", type=Path, default=SCRATCH, help="folder of the JSON files")
    arguments = parser.parse_args()
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device; --device cpu --rehearse tries the parts without one")
    if arguments.device == "cpu" and not arguments.rehearse:
        parser.error("--device cpu is for --rehearse; CPU figures have benchmarks of their own")
    arguments.results.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        if part in RECIPES:
            conversions(part, arguments)
        elif part == "tail":
            studies(arguments)
        else:
            for command in commands(part, arguments):
                print("$", *command, flush=True)
                subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def commands(part: str, arguments: argparse.Namespace) -> list[list[str]]:
    """Arguments of Python for a part that another benchmark measures."""
    device = arguments.device
    if part == "speed":
        # one way of three: every one trains all of SmolLM2
        few = ["--lengths", "64", "--steps", "1", "--runs", "1", "--ways", "xarch"]
        size = few if arguments.rehearse else ["--lengths", "2048", "8192"]
        out = arguments.results / f"conversion_speed_{device}.json"
        return [["benchmarks/conversion_speed.py", "--device", device, *size, "--out", str(out.resolve())]]
    types = ["float32"] if arguments.rehearse else ["bfloat16", "float32"]
    found = []
    for dtype in types:
        out = arguments.results / f"kernels_{device}_{dtype}.json"
        command = ["-m", "benchmarks.kernels", "--device", device, "--dtype", dtype, "--out", str(out.resolve())]
        # a process a point: one form of ours and one rival are enough to see that all runs
        few = ["--quick", "--contenders", "torch", "transformers"]
        found.append([*command, *few] if arguments.rehearse else command)
    return found


def conversions(part: str, arguments: argparse.Namespace) -> None:
    """One run a seed, and their figures."""
    tokens = arguments.hybrid_tokens if part == "hybrid" else arguments.full_tokens
    options = ["--set", f"runtime.device={arguments.device}", "--set", "export.profiles=[]"]
    options += ["--data", arguments.data, "--teacher", "zoo:smollm2-135m"]
    options += ["--tiny", "--set", "data.sample.length=128"] if arguments.rehearse else ["--set", f"budget={tokens}"]
    settings = {"recipe": RECIPES[part], "data": arguments.data, "tokens": None if arguments.rehearse else tokens}
    name = f"smollm2_{part}_{arguments.device}"
    head = header(name, settings, threads=os.cpu_count() or 1, device=arguments.device)
    store = Store(arguments.results / f"{name}.json", head)
    measure(store, arguments.runs / name, arguments.seeds, RECIPES[part], options, data=arguments.data)
    page.show(store.finish())


def studies(arguments: argparse.Namespace) -> None:
    """Teachers on long-tailed pictures, then the student of the first one with a flat minimum."""
    pictures = "images:digits" if arguments.rehearse else arguments.pictures
    if not pictures:
        print("tail: left out, it needs --pictures images:FOLDER with CIFAR-100", flush=True)
        return
    settings = {"data.ref": pictures, "runtime.device": arguments.device, **(REHEARSED if arguments.rehearse else {})}
    teachers = arguments.runs / "deit_lt_cifar100_paper_teachers"
    for out in (teachers, arguments.runs / "deit_lt_cifar100_paper"):
        if out != teachers:
            settings["teacher"] = f"run:{teachers.resolve()}/runs/sam/seed-0"
            settings |= {"student.options.arguments.embed_dim": 48} if arguments.rehearse else {}
        given = {f"XARCH_SET__{key.replace('.', '__')}": str(value) for key, value in settings.items()}
        command = ["-m", "xarch", "study", f"benchmarks/quality/{out.name}.yaml", "--out", str(out.resolve())]
        print("$", *command, flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, env=os.environ | given)


if __name__ == "__main__":
    main()
