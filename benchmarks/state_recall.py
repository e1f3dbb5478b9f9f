"""Decoders of constant state without training: what they still know of a text, by distance, at equal state bytes.

    python benchmarks/state_recall.py --wikitext wikitext2/test.txt

Arms as in ``constant_state.py``, in all layers. Rows of WikiText-2 end with questions: passages of their own ("copy")
and random tokens put into them ("recall"), at every distance; the metric ``recall`` counts the answers' tokens. The
random tokens follow the row's number. An interrupted measurement resumes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import xarch
from benchmarks import page
from benchmarks.constant_state import BYTES, LAYERS, TEACHER, Arms, texts
from benchmarks.store import Store, add_options, header
from xarch import Batch, EvaluationRequest
from xarch_text.recall import Recall, RecallOptions

ROW = 4608
ROWS = 3
OPTIONS = RecallOptions(distances=[64, 256, 512, 1024, 2048, 4096], probes=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True, help="text of WikiText-2's test split")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--bytes", type=int, default=BYTES, help="state bytes a layer")
    add_options(parser, "state_recall")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"teacher": TEACHER, "bytes": chosen.bytes, "row": ROW, "rows": chosen.rows, **OPTIONS.model_dump()}
    store = Store(chosen.out, header("state_recall", settings, threads=1), chosen.fresh)
    teacher = xarch.load_teacher(TEACHER)
    domains = texts(teacher.processor(), chosen.wikitext)
    tokens = domains["wikitext"][: ROW * chosen.rows].unflatten(0, (chosen.rows, ROW))

    def rows() -> list[Batch]:
        return [Batch({"input_ids": row[None]}, ROW) for row in tokens]

    arms = Arms(teacher, LAYERS["30 of 30"], chosen.bytes, domains)
    for arm in [None, *arms.made]:
        name = arm or "teacher"
        if store.find(arm=name) is not None:
            continue
        model, fit = (teacher, 0.0) if arm is None else arms.model(arm)
        begin = time.process_time()
        found = Recall().evaluate(EvaluationRequest(None, {"student": model}, rows, options=OPTIONS))
        spent = time.process_time() - begin
        store.add({"arm": name, **found.student, "n": found.n, "fit": round(fit, 1), "cpu_seconds": round(spent, 1)})
        print(store.points[-1], file=sys.stderr)
    page.show(store.finish())


if __name__ == "__main__":
    main()
