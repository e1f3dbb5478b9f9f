"""Render the radiance field in this folder with numpy and onnxruntime, and Pillow to write the files.
python render.py picture.png [--turntable turn.gif] [--size 200] [--azimuth 45] [--elevation 25]"""

import argparse
import json
import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # disable the usage telemetry of onnxruntime (since 1.29)

import numpy as np
import onnxruntime
from PIL import Image


def camera_rays(facts: dict, width: int, height: int, azimuth: float, elevation: float) -> np.ndarray:
    """Return origins and unit directions [2, pixels, 3] of a camera facing the scene's centre, z up; in degrees."""
    a, e = np.radians(azimuth), np.radians(elevation)
    back = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, height / 2 - np.arange(height) - 0.5)
    dirs = (x[..., None] * right + y[..., None] * np.cross(back, right)) / (facts["focal"] * width) - back
    dirs = (dirs / np.linalg.norm(dirs, axis=-1, keepdims=True)).reshape(-1, 3)
    return np.stack([np.broadcast_to(facts["target"] + facts["radius"] * back, dirs.shape), dirs]).astype(np.float32)


def render(session: onnxruntime.InferenceSession, origins: np.ndarray, dirs: np.ndarray, colour: list) -> np.ndarray:
    """Return colours [pixels, 3]; for a graph with static shapes the last call is padded."""
    chunk = rays if isinstance(rays := session.get_inputs()[0].shape[0], int) else 1024
    parts = []
    for i in range(0, len(dirs), chunk):
        rows = np.arange(i, i + chunk).clip(max=len(dirs) - 1)
        given = {"origins": origins[rows], "directions": dirs[rows], "background": np.asarray(colour, np.float32)}
        parts += session.run(["rgb"], given)
    return np.concatenate(parts)[: len(dirs)].clip(0, 1)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("png")
parser.add_argument("--export", type=Path, default=Path(__file__).parent, help="folder of the graph; default: this one")
parser.add_argument("--turntable", help="write a turntable GIF")
parser.add_argument("--size", type=int, help="width in pixels; default: the scene's")
for name, default in {"frames": 24, "azimuth": 45.0, "elevation": 25.0}.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
said = parser.parse_args()
options = onnxruntime.SessionOptions()
for key, value in {"x64quantprecision": "1", "intra_op.allow_spinning": "0"}.items():  # exact 8-bit sums; no idle spin
    options.add_session_config_entry(f"session.{key}", value)
session = onnxruntime.InferenceSession(str(said.export / "rays.onnx"), options, providers=["CPUExecutionProvider"])
told = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items() if v[:1] in "[{"}
facts, colour = told["xarch.camera"], told["xarch.background"]
height = round((width := said.size or facts["width"]) * facts["height"] / facts["width"])
angles = [said.azimuth + 360 * i / said.frames for i in range(said.frames if said.turntable else 1)]
views = [camera_rays(facts, width, height, angle, said.elevation) for angle in angles]
pictures = [(255 * render(session, o, d, colour)).round().astype(np.uint8).reshape(height, width, 3) for o, d in views]
Image.fromarray(pictures[0]).save(said.png)
if said.turntable:
    first, *rest = (Image.fromarray(picture).quantize(dither=Image.Dither.NONE) for picture in pictures)
    first.save(said.turntable, save_all=True, append_images=rest, duration=80, loop=0)
