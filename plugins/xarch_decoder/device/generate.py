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
known = {"export": Path(__file__).parent, "tokens": 128, "temperature": 0.7, "top-k": 40, "seed": 0, "threads": 1}
[parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{value}") for name, value in known.items()]
args, graphs = parser.parse_args(), {}
every = json.loads((args.export / "profile.json").read_text())["graphs"]
for name, told in [(n, t) for n, t in every.items() if "-" not in n]:  # others are of further operating points
    (options := ort.SessionOptions()).intra_op_num_threads = args.threads
    [options.add_session_config_entry(*entry) for entry in told["session_options"].items()]
    session = ort.InferenceSession(args.export / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    graphs[int(session.get_modelmeta().custom_metadata_map.get("xarch.tokens", 0))] = session, told.get("in_place", {})
facts, value = graphs[1][0].get_modelmeta().custom_metadata_map, ort.OrtValue.ortvalue_from_numpy
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
states, fold, most = json.loads(facts["xarch.states"]), json.loads(facts["xarch.fold"]), len(ids) + args.tokens
held = {s["name"]: value(np.full([most if n < 0 else n for n in s["shape"]], s["fill"], s["dtype"])) for s in states}
room, position, token = json.loads(facts["xarch.context"]) or 2**31, 0, -1
stream, times, rng = decoders.DecodeStream(), [time.perf_counter()], np.random.default_rng(args.seed)
while token not in stop and len(times) <= args.tokens and position + len(ids) <= room:
    while ids:  # in as large pieces as there are graphs for, nothing is padded
        size = max(n for n in graphs if n <= len(ids))
        for graph, place in [graphs[n] for n in (0, size) if n or (fold and position % fold["every"] == 0)]:
            held |= {"input_ids": value(np.array([ids[:size]])), "position": value(np.array([position]))}
            io, outs = graph.io_binding(), {x.name: x.name.removeprefix("present_") for x in graph.get_outputs()}
            [io.bind_ortvalue_input(x.name, held[x.name]) for x in graph.get_inputs()]
            [io.bind_ortvalue_output(n, held[place[n]]) if n in place else io.bind_output(n) for n in outs]
            graph.run_with_iobinding(io)
            held |= {outs[n]: x for n, x in zip(outs, io.get_outputs(), strict=True) if n not in place}
        position, ids = position + size, ids[size:]
    logits = held["logits"].numpy()[0, -1].astype(np.float64)
    best = np.argsort(logits)[-args.top_k if args.temperature > 0 else -1 :]
    token = int(best[(logits[best] / (args.temperature or 1) + rng.gumbel(size=len(best))).argmax()])  # by the softmax
    times, ids = [*times, time.perf_counter()], [token]
    print((token not in stop and stream.step(tokenizer, token)) or "", end="", flush=True)
print(), print(f"{(len(times) - 2) / (times[-1] - times[1]):.1f} tokens/s" if len(times) > 2 else "", file=sys.stderr)
