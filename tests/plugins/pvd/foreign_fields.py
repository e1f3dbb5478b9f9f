"""Checkpoints as their own programs write them, small and with random weights."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def torch_ngp_offsets(levels: int, log2: int, finest: float) -> list[int]:
    """``GridEncoder.__init__`` of torch-ngp, line by line."""
    scale = np.exp2(np.log2(finest / 16) / (levels - 1))
    offsets, offset = [], 0
    for i in range(levels):
        resolution = int(np.ceil(16 * scale**i))
        rows = min(2**log2, (resolution + 1) ** 3)
        rows = int(np.ceil(rows / 8) * 8)
        offsets.append(offset)
        offset += rows
    return [*offsets, offset]


def layers(prefix: str, widths: tuple[int, ...], *, bias: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        state[f"{prefix}.{i}.weight"] = torch.randn(b, a) / a**0.5
        if bias:
            state[f"{prefix}.{i}.bias"] = 0.1 * torch.randn(b)
    return state


def morton_by_hand(x: int, y: int, z: int) -> int:
    """``__morton3D`` of torch-ngp's kernels: bits of x, y, z in turn."""
    code = 0
    for bit in range(10):
        code |= ((x >> bit) & 1) << (3 * bit) | ((y >> bit) & 1) << (3 * bit + 1) | ((z >> bit) & 1) << (3 * bit + 2)
    return code


def torch_ngp_state(arch: str, *, bound: float = 1.0, side: int = 16) -> dict[str, Tensor]:
    """``model`` of a checkpoint of PVD (hash, mlp, vm, tensors) or torch-ngp (ngp-vm, ngp-cp)."""
    torch.manual_seed(0)
    head = layers("color_net", (31, 64, 64, 3), bias=False)
    if arch == "hash":
        offsets = torch_ngp_offsets(14, 8, 2048 * bound)
        state = {
            "encoder.embeddings": torch.rand(offsets[-1], 2) - 0.5,
            "encoder.offsets": torch.tensor(offsets, dtype=torch.int32),
            **layers("sigma_net", (28, 64, 16), bias=False),
            **head,
        }
    elif arch == "mlp":
        state = layers("nerf_mlp", (27, 32, 32, 32, 28), bias=True)
        state["nerf_mlp.2.weight"] = torch.randn(32, 32 + 27) / 8
        state |= layers("sigma_net", (28, 64, 16), bias=False) | head
    elif arch == "tensors":
        state = {"tensor_volume.0": 2 * torch.randn(1, 13, 6, 5, 4)}
    else:
        features = 15 if arch == "vm" else 27
        state = {}
        size = (7, 8, 9)
        for kind, rank in (("sigma", 3), ("color", 4)):
            for m, (a, b, c) in enumerate(((0, 1, 2), (0, 2, 1), (1, 2, 0))):
                state[f"{kind}_vec.{m}"] = torch.randn(1, rank, size[c], 1)
                if arch != "ngp-cp":
                    state[f"{kind}_mat.{m}"] = torch.randn(1, rank, size[b], size[a])
        state["basis_mat.weight"] = torch.randn(features, 4 if arch == "ngp-cp" else 12) / 4
        state |= head if arch == "vm" else layers("color_net", (features * 5 + 15, 128, 128, 3), bias=False)
    box = torch.tensor([-bound, -bound, -bound, bound, bound, bound])
    cascades = 1 + math.ceil(math.log2(bound))
    occupied = torch.zeros(cascades, side**3, dtype=torch.bool)
    occupied[0, morton_by_hand(3, 9, 14)] = True
    occupied[-1, morton_by_hand(15, 0, 7)] = True
    bits = np.packbits(occupied.numpy().reshape(-1), bitorder="little")
    return state | {
        "aabb_train": box,
        "aabb_infer": box.clone(),
        "density_grid": occupied.float() * 30,
        "density_bitfield": torch.from_numpy(bits),
        "step_counter": torch.zeros(16, 2, dtype=torch.int32),
    }


def save_torch_ngp(path: Path, arch: str, **options: Any) -> dict[str, Tensor]:
    state = torch_ngp_state(arch, **options)
    stats = {"loss": [0.1], "valid_loss": [], "results": [], "checkpoints": [], "best_result": None}
    torch.save(
        {"epoch": 3, "global_step": 300, "stats": stats, "mean_count": 4, "mean_density": 0.2, "model": state}, path
    )
    return state


def save_tensorf(path: Path, *, planes: bool = True, mask: bool = True, **changes: Any) -> dict[str, Any]:
    """``TensorBase.save`` of TensoRF."""
    torch.manual_seed(0)
    size, state = (7, 8, 9), {}
    for kind, rank in (("density", 3), ("app", 4)):
        for m, (a, b, c) in enumerate(((0, 1, 2), (0, 2, 1), (1, 2, 0))):
            state[f"{kind}_line.{m}"] = torch.randn(1, rank, size[c], 1)
            if planes:
                state[f"{kind}_plane.{m}"] = torch.randn(1, rank, size[b], size[a])
    state["basis_mat.weight"] = torch.randn(27, 12 if planes else 4)
    mlp = nn.Sequential(nn.Linear(150, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))
    state |= {f"renderModule.mlp.{k}": v for k, v in mlp.state_dict().items()}
    kwargs = {
        "aabb": torch.tensor([[-1.0, -0.8, -0.6], [1.0, 0.8, 0.6]]),
        "gridSize": list(size),
        "density_n_comp": [3] * 3,
        "appearance_n_comp": [4] * 3,
        "app_dim": 27,
        "density_shift": -10,
        "alphaMask_thres": 1e-4,
        "distance_scale": 25,
        "rayMarch_weight_thres": 1e-4,
        "fea2denseAct": "softplus",
        "near_far": [2.0, 6.0],
        "step_ratio": 0.5,
        "shadingMode": "MLP_Fea",
        "pos_pe": 6,
        "view_pe": 2,
        "fea_pe": 2,
        "featureC": 128,
    }
    saved = {"kwargs": kwargs | changes, "state_dict": state}
    if mask:
        alpha = np.zeros((1, 1, 9, 8, 7), dtype=bool)
        alpha[0, 0, 4, 3, 2] = True
        saved["alphaMask.shape"] = alpha.shape
        saved["alphaMask.mask"] = np.packbits(alpha.reshape(-1))
        saved["alphaMask.aabb"] = kwargs["aabb"]
    torch.save(saved, path)
    return saved


def nerfstudio_state(kind: str) -> dict[str, Tensor]:
    """``pipeline`` of a torch-backend checkpoint, names and shapes as its modules have them."""
    torch.manual_seed(0)
    field: dict[str, Tensor] = {}
    if kind in ("nerfacto", "instant-ngp"):
        field = {
            "aabb": torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]),
            "max_res": torch.tensor(64),
            "num_levels": torch.tensor(4),
            "log2_hashmap_size": torch.tensor(6),
            "embedding_appearance.embedding.weight": torch.randn(5, 32),
            "mlp_base.model.0.hash_table": torch.randn(4 * 2**6, 2),
            **layers("mlp_base.model.1.layers", (8, 64, 16), bias=True),
            **layers("mlp_head.layers", (16 + 15 + 32, 64, 64, 3), bias=True),
        }
    elif kind == "tensorf":
        field = {"aabb": torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]])}
        for name, rank in (("density", 3), ("color", 4)):
            field[f"{name}_encoding.plane_coef"] = torch.randn(3, rank, 8, 8)
            field[f"{name}_encoding.line_coef"] = torch.randn(3, rank, 8, 1)
        field["B.weight"] = torch.randn(27, 12)
        field |= layers("mlp_head.layers", (150, 128, 128), bias=True)
        field |= {"field_output_rgb.net.weight": torch.randn(3, 128), "field_output_rgb.net.bias": torch.zeros(3)}
    elif kind == "vanilla":
        field = layers("mlp_base.layers", (63, *[256] * 8), bias=True)
        field["mlp_base.layers.4.weight"] = torch.randn(256, 256 + 63) / 16
        field |= layers("mlp_head.layers", (256 + 27, 128, 128), bias=True)
        for head, width, out in (("field_output_density", 256, 1), ("field_heads.0", 128, 3)):
            field |= {f"{head}.net.weight": torch.randn(out, width), f"{head}.net.bias": torch.zeros(out)}
    root = "field_fine" if kind == "vanilla" else "field"
    state = {f"_model.{root}.{k}": v for k, v in field.items()}
    state["_model.device_indicator_param"] = torch.empty(0)
    if kind == "nerfacto":
        state["_model.proposal_networks.0.mlp_base.0.hash_table"] = torch.randn(8, 2)
    if kind == "instant-ngp":
        occupied = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
        occupied[0, 1, 2, 3] = True
        state["_model.occupancy_grid.binaries"] = occupied
    return state


def save_nerfstudio(folder: Path, kind: str, config: str = "") -> Path:
    """A run folder: ``nerfstudio_models/step-*.ckpt``, ``config.yml``, ``dataparser_transforms.json``."""
    (folder / "nerfstudio_models").mkdir(parents=True)
    saved = {"step": 29999, "pipeline": nerfstudio_state(kind), "optimizers": {}, "schedulers": {}, "scalers": {}}
    torch.save(saved, folder / "nerfstudio_models" / "step-000029999.ckpt")
    if config:
        (folder / "config.yml").write_text(config)
    (folder / "dataparser_transforms.json").write_text('{"transform": [[1,0,0,0],[0,1,0,0],[0,0,1,2]], "scale": 0.5}')
    return folder
