"""Peak memory of one streamed local step over the number of layers: it must not grow with depth beyond the weights.

    python benchmarks/streamed_memory.py

Each depth runs in its own process on a random decoder with the layer shape of SmolLM2-135M (width 576, 9 heads on 3 key
heads, MLP 1536). A short step first allocates weights, gradients and optimiser state; reported is how far the peak of
the resident memory rises above that in a step on 2048 tokens, streamed site by site, and beside it for the same losses
summed over all sites before one backward, as published implementations do.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import page
from benchmarks.store import Store, add_options, header

DEPTHS = (2, 4, 8, 16)
TOKENS = 2048


def measure(depth: int, mode: str) -> float:
    """MiB of peak memory above weights, gradients and optimiser state."""
    import contextlib

    import torch

    from xarch import Batch
    from xarch.engine.teacher import MAIN, TeacherFeed
    from xarch.engine.walks import SiteStream
    from xarch.planning.resolve import resolve_target
    from xarch.registry.loader import get_registry
    from xarch_decoder.facts import DecoderFacts
    from xarch_decoder.model.attention import Attention
    from xarch_decoder.student import DecoderStudent

    torch.set_num_threads(1)
    torch.manual_seed(0)
    facts = DecoderFacts(
        layers=depth,
        width=576,
        vocab=1024,
        heads=9,
        kv_heads=3,
        head_dim=64,
        mlp_width=1536,
        inverse_frequencies=tuple(1e5 ** (-i / 32) for i in range(32)),
        max_positions=8192,
    )
    teacher = DecoderStudent(facts, [[Attention]] * depth).as_teacher("made", "made", None)
    target = resolve_target(get_registry(), "dm2", {})
    student = target.adapter.build(facts, target.options, {}, device=torch.device("cpu"))
    target.adapter.initialise(student, teacher)
    student.module.requires_grad_(False)
    for name in student.param_groups()["mixers"]:
        student.module.get_parameter(name).requires_grad_(True)
    trained = [p for p in student.module.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=1e-4)
    sites = student.sites()
    stream = SiteStream({s: {f"{s}.input", f"{s}.mixer_out"} for s in sites})
    feed = TeacherFeed({MAIN: teacher}, contextlib.nullcontext)

    def step(tokens: int) -> None:
        batch = Batch({"input_ids": torch.randint(0, facts.vocab, (1, tokens))}, tokens)
        losses = []

        def on_site(site: str, given: dict) -> None:
            with torch.enable_grad():
                values = student.run_site(site, {"input": given[f"{site}.input"]}, {"mixer_out"}, batch)
                loss = (values["mixer_out"] - given[f"{site}.mixer_out"]).norm(dim=-1).mean()
                if mode == "streamed":
                    loss.backward()
                else:
                    losses.append(loss)

        stream.run(lambda taps, sink: feed.run(batch, taps, sink, MAIN), on_site)
        if losses:
            torch.stack(losses).sum().backward()
        adam.step()

    step(32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(TOKENS)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("DEPTH", "MODE"), help="measure one point and print it")
    add_options(parser, "streamed_memory")
    arguments = parser.parse_args()
    if arguments.one:
        print(measure(int(arguments.one[0]), arguments.one[1]))
        return
    store = Store(arguments.out, header("streamed_memory", {"tokens": TOKENS}, threads=1), arguments.fresh)
    for depth in DEPTHS:
        if store.find(layers=depth) is None:
            row: dict[str, Any] = {"layers": depth}
            for mode in ("streamed", "summed"):
                command = [sys.executable, __file__, "--one", str(depth), mode]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                row[f"{mode}_mib"] = round(float(done.stdout.split()[-1]), 1)
            print(store.add(row), flush=True)
    page.show(store.finish())


if __name__ == "__main__":
    main()
