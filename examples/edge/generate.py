"""Generate text with an exported language student: numpy, onnxruntime and tokenizers, nothing else."""

import argparse
import json
import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # disable the usage telemetry of onnxruntime (since 1.29)

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer, decoders


def load(path, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    for entry in json.loads(path.with_name("profile.json").read_text())["graphs"][path.stem]["session_options"].items():
        options.add_session_config_entry(*entry)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def generate(graphs, facts, ids, args, stop):
    """Yield token ids after the prompt ``ids``, which is read in whole chunks, then one token at a time."""
    states = {s["name"]: np.full(s["shape"], s["fill"], s["dtype"]) for s in json.loads(facts["xarch.states"])}
    room, rng, position = json.loads(facts["xarch.context"]) or 2**31, np.random.default_rng(args.seed), 0
    for _ in range(args.tokens):
        while ids and position < room:
            size = max(n for n in graphs if n <= min(len(ids), room - position))
            inputs = {"input_ids": np.array([ids[:size]]), "position": np.array([position]), **states}
            out = dict(zip((o.name for o in graphs[size].get_outputs()), graphs[size].run(None, inputs), strict=True))
            states, position, ids = {k: out[f"present_{k}"] for k in states}, position + size, ids[size:]
        logits = out["logits"][0, -1].astype(np.float64)
        best = np.argsort(logits)[-args.top_k if args.temperature > 0 else -1 :]
        weights = np.exp((logits[best] - logits[best[-1]]) / (args.temperature or 1))
        token = int(rng.choice(best, p=weights / weights.sum()))
        if ids or token in stop:  # ids remain if the states are full
            return
        yield (ids := [token])[0]


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("export", type=Path, help="folder with the .onnx files, e.g. runs/NAME/export/cpu")
parser.add_argument("prompt")
parser.add_argument("--tokenizer", help="a tokenizer.json; default: the one in the run's student folder")
parser.add_argument("--chat", action="store_true", help="wrap the prompt as a user message (ChatML)")
for name, default in {"tokens": 128, "temperature": 0.7, "top-k": 40, "seed": 0, "threads": 1}.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
args = parser.parse_args()
tokenizer = Tokenizer.from_file(args.tokenizer or str(args.export.resolve().parents[1] / "student/tokenizer.json"))
sessions = [load(path, args.threads) for path in args.export.glob("*.onnx")]
graphs = {int(s.get_modelmeta().custom_metadata_map["xarch.tokens"]): s for s in sessions}
facts = graphs[1].get_modelmeta().custom_metadata_map
prompt = f"<|im_start|>user\n{args.prompt}<|im_end|>\n<|im_start|>assistant\n" if args.chat else args.prompt
ids = tokenizer.encode(prompt).ids or [json.loads(facts["xarch.bos"]) or 0]
stop, stream = {*json.loads(facts["xarch.eos"]), tokenizer.token_to_id("<|im_end|>")}, decoders.DecodeStream()
for token in generate(graphs, facts, ids, args, stop):
    print(stream.step(tokenizer, token) or "", end="", flush=True)
print()
