"""Answer a prompt with the encoder-decoder in this folder: numpy, onnxruntime, tokenizers."""

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
parser.add_argument("prompt", help="as the student was trained to read it; \\n stands for a new line")
parser.add_argument("--export", type=Path, default=Path(__file__).parent, help="folder of the graphs, if not this one")
for name, default in {"tokens": 64, "threads": 1}.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
args, graphs = parser.parse_args(), {}

for name, told in json.loads((args.export / "profile.json").read_text())["graphs"].items():
    (options := ort.SessionOptions()).intra_op_num_threads = args.threads
    [options.add_session_config_entry(*entry) for entry in told["session_options"].items()]
    graphs[name] = ort.InferenceSession(args.export / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
encoder, decoder = graphs["encoder"], graphs["decoder_1"]
facts = decoder.get_modelmeta().custom_metadata_map
tokenizer = Tokenizer.from_file(str(args.export / "tokenizer.json"))
value, start = ort.OrtValue.ortvalue_from_numpy, time.perf_counter()
ids = tokenizer.encode(args.prompt.replace("\\n", "\n")).ids
if len(ids) < 2:
    sys.exit("the prompt has fewer than two tokens")
# The encoder reads the prompt without its last token, with which the decoder begins.
source, token = np.array([ids[:-1]]), np.array([ids[-1:]])
size, room = (json.loads(facts.get(f"xarch.{name}", "null")) for name in ("source", "answer"))
if size and len(ids) > size + 1:
    sys.exit(f"the prompt has {len(ids)} tokens, and these graphs read at most {size + 1}")
pads = ((0, 0), (0, size - source.shape[1] if size else 0))  # of graphs with static shapes
mask, source = value(np.pad(np.ones_like(source), pads)), np.pad(source, pads)
read = encoder.run_with_ort_values(None, {"input_ids": value(source), "attention_mask": mask})
fixed = {o.name.replace("present", "past_key_values"): v for o, v in zip(encoder.get_outputs(), read, strict=True)}
fixed["encoder_attention_mask"] = mask
heads, width = json.loads(facts["xarch.cache"])
empty = value(np.zeros((1, heads, room or 0, width), np.float32))
held = {i.name: empty for i in decoder.get_inputs() if ".decoder." in i.name}
stream, times = decoders.DecodeStream(), list[float]()
while len(times) < min(args.tokens, room or args.tokens):  # keys and values stay in the runtime's memory
    at = {"position": value(np.array([len(times)]))} if room else {}
    logits, *present = decoder.run_with_ort_values(None, {"input_ids": value(token), **fixed, **held, **at})
    held, token = dict(zip(held, present, strict=True)), logits.numpy()[:, -1].argmax(-1)[None]
    times.append(time.perf_counter())
    if int(token[0, 0]) in json.loads(facts["xarch.eos"]):
        break
    print(stream.step(tokenizer, int(token[0, 0])) or "", end="", flush=True)
print()
speed = f", then {(len(times) - 1) / (times[-1] - times[0]):.1f} tokens/s" if len(times) > 1 else ""
print(f"first token after {1e3 * (times[0] - start):.0f} ms{speed}", file=sys.stderr)
