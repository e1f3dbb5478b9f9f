"""Render an exported radiance field with numpy and onnxruntime alone: a PNG, and a turntable GIF.

python examples/edge/render.py RUN/export/cpu/rays.onnx picture.png [--turntable turn.gif]
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image

CHUNK = 1024


def camera_rays(facts: dict, azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray]:
    """Origins and unit directions [pixels, 3] of a camera that looks at the scene's middle, z up."""
    width, height, target = facts["width"], facts["height"], np.array(facts["target"])
    back = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    up = np.cross(back, right)
    focal = facts["focal"] * width
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = (u - width / 2) / focal, (height / 2 - v) / focal
    dirs = x[..., None] * right + y[..., None] * up - back
    dirs = (dirs / np.linalg.norm(dirs, axis=-1, keepdims=True)).reshape(-1, 3)
    origin = target + facts["radius"] * back
    return np.broadcast_to(origin, dirs.shape).astype(np.float32), dirs.astype(np.float32)


def render(session: onnxruntime.InferenceSession, facts: dict, background: list, azimuth: float) -> Image.Image:
    """One picture."""
    origins, dirs = camera_rays(facts, azimuth, 0.45)
    colour = np.array(background, np.float32)
    parts = [
        session.run(
            ["rgb"], {"origins": origins[i : i + CHUNK], "directions": dirs[i : i + CHUNK], "background": colour}
        )[0]
        for i in range(0, len(dirs), CHUNK)
    ]
    pixels = np.concatenate(parts).reshape(facts["height"], facts["width"], 3)
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("png")
parser.add_argument("--turntable", help="GIF of one turn")
parser.add_argument("--frames", type=int, default=24)
arguments = parser.parse_args()
session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
told = {k.removeprefix("xarch."): v for k, v in session.get_modelmeta().custom_metadata_map.items()}
facts, background = json.loads(told["camera"]), json.loads(told["background"])
render(session, facts, background, 0.8).save(arguments.png)
if arguments.turntable:
    frames = [render(session, facts, background, 2 * np.pi * i / arguments.frames) for i in range(arguments.frames)]
    frames[0].save(arguments.turntable, save_all=True, append_images=frames[1:], duration=80, loop=0)
