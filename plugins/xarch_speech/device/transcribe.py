"""Transcribe a WAV file with the speech model in this folder: numpy, onnxruntime, tokenizers."""

import argparse
import json
import os
import sys
import time
import wave
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # disable the usage telemetry of onnxruntime (since 1.29)
import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("sound", help="WAV file, 16 bits a sample")
parser.add_argument("--export", type=Path, default=Path(__file__).parent, help="folder of the graphs, if not this one")
for name, default in {"tokens": 128, "threads": 1}.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
args, graphs = parser.parse_args(), {}

for name, told in json.loads((args.export / "profile.json").read_text())["graphs"].items():
    (options := ort.SessionOptions()).intra_op_num_threads = args.threads
    [options.add_session_config_entry(*entry) for entry in told["session_options"].items()]
    graphs[name] = ort.InferenceSession(args.export / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
encoder, decoder = graphs["encoder"], graphs["decoder_1"]
facts = {k.removeprefix("xarch."): v for k, v in decoder.get_modelmeta().custom_metadata_map.items()}
keys = ("start", "eos", "cache", "answer")  # the last of graphs with static shapes: how many tokens their buffers hold
start, eos, (heads, width), room = (json.loads(facts.get(key, "null")) for key in keys)
rate, fft, hop, mels, frames = (json.loads(facts["sound"])[key] for key in ("rate", "fft", "hop", "mels", "frames"))
with wave.open(args.sound) as file:
    own, sound = file.getframerate(), np.frombuffer(file.readframes(1 << 30), "<i2").reshape(-1, file.getnchannels())
sound, share = sound.mean(1)[: int(frames * hop / rate * own)] / 32768, min(rate / own, 1)
if own != rate:  # a low-pass filter, and linear interpolation
    low = np.convolve(sound, share * np.sinc(share * np.arange(-128, 129)) * np.hanning(257), "same")
    sound = np.interp(np.arange(int(len(sound) * rate / own)) * own / rate, np.arange(len(low)), low)
sound = np.pad(np.pad(sound, (0, frames * hop - len(sound))), fft // 2, "reflect")
cut = np.lib.stride_tricks.sliding_window_view(sound, fft)[::hop][:frames] * np.hanning(fft + 1)[:-1]
# Slaney's scale: linear to 1 kHz, then logarithmic; triangles of equal area.
scale = np.linspace(0, 15 + 27 * np.log(rate / 2000) / np.log(6.4), mels + 2)
edges = np.where(scale < 15, 200 / 3 * scale, 1000 * 6.4 ** ((scale - 15) / 27))
rises = (np.fft.rfftfreq(fft, 1 / rate)[:, None] - edges[:-1]) / np.diff(edges)
bands = np.clip(np.minimum(rises[:, :-1], 1 - rises[:, 1:]), 0, None) * 2 / (edges[2:] - edges[:-2])
heard = np.log10(np.maximum(np.abs(np.fft.rfft(cut)) ** 2 @ bands, 1e-10)).T
features = ((np.maximum(heard, heard.max() - 8) + 4) / 4).astype(np.float32)[None]
value, began = ort.OrtValue.ortvalue_from_numpy, time.perf_counter()
names = [o.name.replace("present", "past_key_values") for o in encoder.get_outputs()]
fixed = dict(zip(names, encoder.run_with_ort_values(None, {"input_features": value(features)}), strict=True))
empty, made, place = value(np.zeros((1, heads, room or 0, width), np.float32)), list[int](), 0
held = {i.name: empty for i in decoder.get_inputs() if ".decoder." in i.name}
while len(made) < args.tokens and (not room or place < room) and not set(made) & set(eos):
    token = start[place] if place < len(start) else made[-1]
    at = {"input_ids": value(np.array([[token]])), **({"position": value(np.array([place]))} if room else {})}
    logits, *present = decoder.run_with_ort_values(None, {**at, **fixed, **held})
    held, place = dict(zip(held, present, strict=True)), place + 1
    made += [int(logits.numpy()[0, -1].argmax())] if place >= len(start) else []
print(Tokenizer.from_file(str(args.export / "tokenizer.json")).decode(made).strip())
print(f"{len(made)} tokens in {time.perf_counter() - began:.2f} s", file=sys.stderr)
