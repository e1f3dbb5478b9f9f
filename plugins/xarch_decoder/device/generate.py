"""Continue a text with the language student in this folder: numpy, onnxruntime, tokenizers; jinja2 for --chat."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # disable the usage telemetry of onnxruntime (since 1.29)
import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer, decoders

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("--chat", action="store_true", help="put the prompt as a question, in the chat template")
parser.add_argument("--export", type=Path, default=Path(__file__).parent, help="folder of the graphs, if not this one")
for name, default in {"tokens": 128, "temperature": 0.7, "top-k": 40, "seed": 0, "threads": 1}.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
args, graphs = parser.parse_args(), {}
for name, told in json.loads((args.export / "profile.json").read_text())["graphs"].items():
    (options := ort.SessionOptions()).intra_op_num_threads = args.threads
    [options.add_session_config_entry(*entry) for entry in told["session_options"].items()]
    session = ort.InferenceSession(args.export / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    graphs[int(session.get_modelmeta().custom_metadata_map.get("xarch.tokens", 0))] = session
facts = graphs[1].get_modelmeta().custom_metadata_map
tokenizer = Tokenizer.from_file(str(args.export / "tokenizer.json"))
told = json.loads((args.export / "tokenizer_config.json").read_text())
special = {k: v["content"] if isinstance(v, dict) else v for k, v in told.items() if k.endswith("_token")}
stop, prompt = {*json.loads(facts["xarch.eos"]), tokenizer.token_to_id(special.get("eos_token") or "")}, args.prompt
if args.chat:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    asked = {"messages": [{"role": "user", "content": prompt}], "add_generation_prompt": True, **special}
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.globals |= {"strftime_now": time.strftime, "raise_exception": sys.exit}
    prompt = env.from_string((args.export / "chat_template.jinja").read_text(encoding="utf-8")).render(asked)
ids = tokenizer.encode(prompt, add_special_tokens=not args.chat).ids or [json.loads(facts["xarch.bos"]) or 0]
held = {s["name"]: np.full(s["shape"], s["fill"], s["dtype"]) for s in json.loads(facts["xarch.states"])}
room, fold, position = json.loads(facts["xarch.context"]) or 2**31, json.loads(facts["xarch.fold"]), 0
stream, times, rng = decoders.DecodeStream(), [time.perf_counter()], np.random.default_rng(args.seed)
while len(times) <= args.tokens and position + len(ids) <= room:
    while ids:  # in as large pieces as there are graphs for, nothing is padded
        size = max(n for n in graphs if n <= len(ids))
        for graph in [graphs[n] for n in (0, size) if n or (fold and position % fold["every"] == 0)]:
            given = {"input_ids": np.array([ids[:size]]), "position": np.array([position]), **held}
            found = graph.run(None, {node.name: given[node.name] for node in graph.get_inputs()})
            held |= {node.name.removeprefix("present_"): x for node, x in zip(graph.get_outputs(), found, strict=True)}
        position, ids = position + size, ids[size:]
    logits = held["logits"][0, -1].astype(np.float64)
    best = np.argsort(logits)[-args.top_k if args.temperature > 0 else -1 :]
    weights = np.exp((logits[best] - logits[best[-1]]) / (args.temperature or 1))
    if (token := int(rng.choice(best, p=weights / weights.sum()))) in stop:
        break
    times, ids = [*times, time.perf_counter()], [token]
    print(stream.step(tokenizer, token) or "", end="", flush=True)
print()
if len(times) > 2:
    print(f"{(len(times) - 2) / (times[-1] - times[1]):.1f} tokens/s", file=sys.stderr)
