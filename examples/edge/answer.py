"""Answer a prompt with an exported encoder-decoder: numpy, onnxruntime and tokenizers, nothing else."""

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


def answer(encoder, decoder, facts, ids, tokens):
    """Yield the likeliest token ids of the answer; keys and values stay in the runtime's memory."""
    source, token = np.array([ids[:-1]]), np.array([ids[-1:]])
    read = encoder.run_with_ort_values(None, {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in
        {"input_ids": source, "attention_mask": np.ones_like(source)}.items()})  # fmt: skip
    names = [o.name.replace("present", "past_key_values") for o in encoder.get_outputs()]
    fixed = dict(zip(names, read, strict=True))
    fixed["encoder_attention_mask"] = ort.OrtValue.ortvalue_from_numpy(np.ones_like(source))
    heads, width = json.loads(facts["xarch.cache"])
    empty = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, 0, width), np.float32))
    held = {i.name: empty for i in decoder.get_inputs() if ".decoder." in i.name}
    for _ in range(tokens):
        given = {"input_ids": ort.OrtValue.ortvalue_from_numpy(token), **fixed, **held}
        logits, *present = decoder.run_with_ort_values(None, given)
        held = dict(zip(held, present, strict=True))
        token = logits.numpy()[:, -1].argmax(-1)[None]
        yield int(token[0, 0])


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("export", type=Path, help="folder with the .onnx files, e.g. runs/NAME/export/cpu")
parser.add_argument("prompt", help="as the student was trained to read it; \\n stands for a new line")
parser.add_argument("--tokenizer", help="a tokenizer.json; default: the one in the run's student folder")
for name, default in {"tokens": 64, "threads": 1}.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
args = parser.parse_args()
tokenizer = Tokenizer.from_file(args.tokenizer or str(args.export.resolve().parents[1] / "student/tokenizer.json"))
encoder, decoder = (load(args.export / f"{name}.onnx", args.threads) for name in ("encoder", "decoder_1"))
facts, stream = decoder.get_modelmeta().custom_metadata_map, decoders.DecodeStream()
ids = tokenizer.encode(args.prompt.replace("\\n", "\n")).ids
for token in answer(encoder, decoder, facts, ids, args.tokens):
    if token in json.loads(facts["xarch.eos"]):
        break
    print(stream.step(tokenizer, token) or "", end="", flush=True)
print()
