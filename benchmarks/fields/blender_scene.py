"""Render a scene of real meshes with Blender into the folder format of NeRF, for measurements on path-traced pictures.

    python -m venv blender-env && blender-env/bin/pip install bpy        # or: apt install blender
    blender-env/bin/python benchmarks/fields/blender_scene.py OUT --views 50 --size 100
    xarch pvd train OUT --out teacher.safetensors                        # in xarch's own environment

The file needs nothing of xarch: ``bpy`` wants one Python version and numpy below 2, so it gets an environment of its
own. Uses the module ``bpy`` where it can be imported, else the program ``blender``; without either it says so and ends
with exit code 0, so that a list of benchmarks goes on. The scene: a monkey's head of glossy plastic, a coated ring and
a metal cone on a wooden board, lit by an area lamp and a grey sky; transparent background. Cameras are those of the
procedural scene: on the upper half of a sphere, looking at the origin.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

FOV = 0.6911
RADIUS = 3.2
HIGHEST = 0.95
BOX = [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]


def material(bpy: Any, name: str, **inputs: Any) -> Any:
    """A material of Blender's principled shader; inputs a version does not have are left at their default."""
    made = bpy.data.materials.new(name)
    made.use_nodes = True
    shader = made.node_tree.nodes["Principled BSDF"]
    for key, value in inputs.items():
        if key in shader.inputs:
            shader.inputs[key].default_value = value
    return made


def chequered(bpy: Any) -> Any:
    """The board: a chequer of two woods, rough."""
    made = material(bpy, "board", Roughness=0.7)
    nodes, links = made.node_tree.nodes, made.node_tree.links
    texture = nodes.new("ShaderNodeTexChecker")
    texture.inputs["Scale"].default_value = 8
    texture.inputs["Color1"].default_value = (0.55, 0.32, 0.15, 1)
    texture.inputs["Color2"].default_value = (0.85, 0.75, 0.6, 1)
    place = nodes.new("ShaderNodeTexCoord")
    links.new(place.outputs["Generated"], texture.inputs["Vector"])
    links.new(texture.outputs["Color"], nodes["Principled BSDF"].inputs["Base Color"])
    return made


def build(bpy: Any) -> Any:
    """The scene; returns its camera."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    plastic = material(bpy, "plastic", **{"Base Color": (0.8, 0.15, 0.1, 1), "Roughness": 0.25})
    coated = material(bpy, "coated", **{"Base Color": (0.1, 0.35, 0.75, 1), "Roughness": 0.4, "Coat Weight": 1.0})
    metal = material(bpy, "metal", **{"Base Color": (0.9, 0.7, 0.3, 1), "Metallic": 1.0, "Roughness": 0.35})
    bpy.ops.mesh.primitive_monkey_add(size=0.9, location=(-0.15, 0.1, 0.0), rotation=(-0.6, 0.0, 0.4))
    head = bpy.context.object
    head.data.materials.append(plastic)
    head.modifiers.new("smooth", "SUBSURF").levels = 2
    head.modifiers["smooth"].render_levels = 2
    bpy.ops.object.shade_smooth()
    bpy.ops.mesh.primitive_torus_add(
        major_radius=0.28, minor_radius=0.09, location=(0.36, -0.36, -0.36), major_segments=64, minor_segments=24
    )
    bpy.context.object.data.materials.append(coated)
    bpy.ops.object.shade_smooth()
    bpy.ops.mesh.primitive_cone_add(radius1=0.2, depth=0.6, location=(0.45, 0.45, -0.15), vertices=64)
    bpy.context.object.data.materials.append(metal)
    bpy.ops.mesh.primitive_cube_add(size=1, location=(0, 0, -0.5), scale=(1.5, 1.5, 0.1))
    bpy.context.object.data.materials.append(chequered(bpy))
    bpy.ops.object.light_add(type="AREA", location=(2, 1.2, 3.5))
    lamp = bpy.context.object
    lamp.data.energy, lamp.data.size = 250, 1.5
    lamp.rotation_euler = (math.radians(-25), math.radians(30), 0)
    world = bpy.data.worlds.new("sky")
    world.use_nodes = True
    world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.8, 0.85, 0.9, 1)
    world.node_tree.nodes["Background"].inputs["Strength"].default_value = 0.6
    bpy.context.scene.world = world
    lens = bpy.data.cameras.new("camera")
    lens.sensor_fit, lens.angle = "HORIZONTAL", FOV
    camera = bpy.data.objects.new("camera", lens)
    bpy.context.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    return camera


def settings(bpy: Any, size: int, samples: int) -> None:
    """Path tracing on the CPU, transparent film, plain sRGB."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.device = "CPU"
    scene.cycles.samples = samples
    scene.cycles.use_denoising = False
    scene.render.film_transparent = True
    scene.render.resolution_x = scene.render.resolution_y = size
    scene.render.resolution_percentage = 100
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_mode = "RGBA"
    scene.view_settings.view_transform = "Standard"


def pose(azimuth: float, elevation: float) -> list[list[float]]:
    """Camera-to-world, OpenGL axes, of a camera on the sphere that looks at the origin with z up."""
    ca, sa, ce, se = math.cos(azimuth), math.sin(azimuth), math.cos(elevation), math.sin(elevation)
    back = (ce * ca, ce * sa, se)
    right, up = (-sa, ca, 0.0), (-se * ca, -se * sa, ce)
    rows = [[right[k], up[k], back[k], RADIUS * back[k]] for k in range(3)]
    return [*rows, [0.0, 0.0, 0.0, 1.0]]


def render(out: Path, views: dict[str, int], size: int, samples: int, seed: int) -> None:
    """Render every split and write its JSON."""
    import bpy
    from mathutils import Matrix

    camera = build(bpy)
    settings(bpy, size, samples)
    draw = random.Random(seed)
    for split, count in views.items():
        frames = []
        for number in range(count):
            matrix = pose(draw.uniform(0, 2 * math.pi), math.asin(draw.uniform(0, HIGHEST)))
            camera.matrix_world = Matrix(matrix)
            bpy.context.scene.cycles.seed = number
            bpy.context.scene.render.filepath = str(out.resolve() / split / f"r_{number}.png")
            bpy.ops.render.render(write_still=True)
            frames.append({"file_path": f"./{split}/r_{number}", "transform_matrix": matrix})
        document = {"camera_angle_x": FOV, "w": size, "h": size, "aabb": BOX, "frames": frames}
        (out / f"transforms_{split}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--views", type=int, default=50, help="training views; a fifth as many are held out")
    parser.add_argument("--size", type=int, default=100, help="side of the pictures in pixels")
    parser.add_argument("--samples", type=int, default=64, help="paths a pixel")
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args(arguments)
    if importlib.util.find_spec("bpy") is None:
        program = shutil.which("blender")
        if program is None:
            print("skipped: neither the module bpy nor the program blender is here (pip install bpy)", file=sys.stderr)
            return 0
        command = [program, "--background", "--factory-startup", "--python-exit-code", "1", "--python", __file__, "--"]
        return subprocess.run([*command, *arguments]).returncode
    said.out.mkdir(parents=True, exist_ok=True)
    held = max(1, said.views // 5)
    render(said.out, {"train": said.views, "val": max(1, held // 2), "test": held}, said.size, said.samples, said.seed)
    print(f"{said.out}: {said.views} training and {held} test views of {said.size}x{said.size}")
    return 0


if __name__ == "__main__":
    # Blender passes its own arguments first, ours follow a double dash.
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]))
