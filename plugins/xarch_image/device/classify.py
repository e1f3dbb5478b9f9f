"""Classify pictures with the image student in this folder: numpy, onnxruntime, and Pillow to read the files.
python classify.py picture.jpg [more.png ...] [--top 5] [--input NAME=NUMBER]"""

import argparse
import json
import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # disable the usage telemetry of onnxruntime (since 1.29)

import numpy as np
import onnxruntime
from PIL import Image


def prepared(file: str, facts: dict) -> np.ndarray:
    """Return a picture as the graph reads it, [channels, height, width]: its middle, resized, minus mean, over std."""
    height, width = facts["size"]
    picture = Image.open(file).convert("L" if facts["channels"] == 1 else "RGB")
    scale = max(width / picture.width, height / picture.height)
    whole = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    method = Image.Resampling.BICUBIC if facts["interpolation"] == "bicubic" else Image.Resampling.BILINEAR
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    picture = picture.resize(whole, method).crop((left, top, left + width, top + height))
    pixels = np.asarray(picture, np.float32).reshape(height, width, -1) / 255
    return ((pixels - np.float32(facts["mean"])) / np.float32(facts["std"])).transpose(2, 0, 1)


def named(text: str) -> tuple[str, float]:
    """Return NAME=NUMBER as a pair."""
    name, _, value = text.partition("=")
    return name, float(value)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("pictures", nargs="+")
parser.add_argument("--export", type=Path, default=Path(__file__).parent, help="folder of the graph; default: this one")
parser.add_argument("--top", type=int, default=5, help="classes to print")
parser.add_argument(
    "--input", metavar="NAME=NUMBER", type=named, action="append", default=[], help="another input of the graph"
)
said = parser.parse_args()
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # otherwise 8-bit sums saturate on x86
session = onnxruntime.InferenceSession(str(said.export / "model.onnx"), options, providers=["CPUExecutionProvider"])
told = session.get_modelmeta().custom_metadata_map
facts, classes = json.loads(told["xarch.image"]), json.loads(told["xarch.classes"])
more = json.loads(told.get("xarch.inputs", "{}")) | dict(said.input)
known = {each.name for each in session.get_inputs()} - {"images"}
if unknown := sorted(set(more) - known):
    parser.error(f"--input: the graph has no {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'no other'}")
others = {name: np.array([value], np.float32) for name, value in more.items()}
names = classes if isinstance(classes, list) else [str(i) for i in range(classes)]
for file in said.pictures:
    (logits,) = session.run(["logits"], {"images": prepared(file, facts)[None], **others})
    shares = np.exp(logits[0] - logits[0].max())
    shares /= shares.sum()
    print(f"{file}: " + ", ".join(f"{names[i]} {shares[i]:.2f}" for i in np.argsort(-shares)[: said.top]))
