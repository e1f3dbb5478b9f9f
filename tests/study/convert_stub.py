"""Stands for ``xarch convert CONFIG --resume --out RUN``: writes what a run folder holds, and misbehaves on request.

``student.options.behaviour``: "fail" until there is a file ``FIXED`` beside the runs, "gate" misses the
quality gate, "die" leaves nothing behind, "wait" works until it is interrupted, then needs a second start.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import yaml


def main(config: str, out: str) -> int:
    settings = yaml.safe_load(Path(config).read_text())
    behaviour = settings["student"].get("options", {}).get("behaviour", "")
    run = Path(out)
    if behaviour == "die":
        print("error (plan): nothing fits")
        return 3
    run.mkdir(parents=True, exist_ok=True)
    starts = run / "starts.txt"
    with open(starts, "a") as file:
        file.write("start\n")
    (run / "plan.json").write_text("{}")

    def end(state: str, reason: str = "", code: int = 0) -> int:
        (run / "status.json").write_text(json.dumps({"state": state, "reason": reason}))
        return code

    end("running")
    if behaviour == "fail" and not (run.parents[2] / "FIXED").exists():
        return end("failed", "diverged: loss is NaN at step 3", 5)
    if behaviour == "wait" and len(starts.read_text().splitlines()) == 1:
        stopped: list[int] = []
        signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
        (run / "waits").touch()
        while not stopped:
            time.sleep(0.02)
        return end("interrupted", "SIGINT", 130)
    value = settings["budget"] / 1000 + settings["seed"] * 0.01 + settings.get("gates", {}).get("x", {}).get("min", 0)
    teacher = {"top1": 0.3 * int(settings["teacher"][-1])}
    found = {"metric": "top1", "higher_is_better": True, "unit": "share", "teacher": teacher}
    found |= {"student": {"top1": value, "loss": 1 - value}, "gated": {"kl": value / 2}, "n": 4}
    found |= {"units": {"kl": "nats/row"}, "directions": {"kl": False}, "variants": {"half": {"top1": value / 4}}}
    (run / "eval.json").write_text(json.dumps(found))
    if behaviour == "gate":
        return end("failed", "quality: top1 is 0.1, wanted at least 0.5", 7)
    return end("done")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[sys.argv.index("--out") + 1]))
