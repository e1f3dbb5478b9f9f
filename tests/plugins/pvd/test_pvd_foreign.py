"""Checkpoints of TensoRF and nerfstudio give the numbers their own code would compute with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.plugins.pvd.foreign_fields import nerfstudio_state, save_nerfstudio, save_tensorf
from xarch import UsageError
from xarch_pvd.source.formats import read_field
from xarch_pvd.source.formats.plain_yaml import read_plain_yaml

CONFIG = """
!!python/object:nerfstudio.engine.trainer.TrainerConfig
_target: &id001 !!python/name:nerfstudio.engine.trainer.Trainer ''
pipeline: !!python/object:nerfstudio.pipelines.base_pipeline.VanillaPipelineConfig
  model: !!python/object:nerfstudio.models.nerfacto.NerfactoModelConfig
    average_init_density: 0.01
    background_color: white
    disable_scene_contraction: true
    use_average_appearance_embedding: false
    sizes: !!python/tuple [1, 2]
    where: !!python/object/apply:pathlib.PosixPath [outputs, a]
"""


@pytest.mark.parametrize("planes", [True, False])
def test_tensorf(tmp_path: Path, planes: bool) -> None:
    saved = save_tensorf(tmp_path / "t.th", planes=planes)
    record = read_field(tmp_path / "t.th", allow_pickle=True)
    assert record.arch == ("tensorf-vm" if planes else "tensorf-cp")
    assert record.options["resolution"] == [7, 8, 9]
    assert record.options["shading"] == "MLP_Fea"
    assert (record.options["density_shift"], record.options["distance_scale"]) == (-10, 25)
    assert record.aabb == pytest.approx((-1, -0.8, -0.6, 1, 0.8, 0.6))
    for name, tensor in saved["state_dict"].items():
        assert torch.equal(record.tensors[name], tensor)
    # The one full vertex (2, 3, 4) of 7x8x9 touches the cells 1..2, 2..3, 3..4 of 6x7x8.
    assert record.occupancy is not None
    assert tuple(record.occupancy.shape) == (8, 8, 8)
    centres = (torch.tensor([1.5, 2.5, 3.5]) / torch.tensor([6, 7, 8]) * 8).long()
    assert bool(record.occupancy[tuple(centres)])
    share = float(record.occupancy.float().mean())
    assert 8 / (6 * 7 * 8) <= share < 36 / (6 * 7 * 8)
    assert not bool(record.occupancy[6:].any())


def test_tensorf_forward_facing_scenes_are_in_device_coordinates(tmp_path: Path) -> None:
    save_tensorf(tmp_path / "t.th", near_far=[0.0, 1.0], mask=False)
    record = read_field(tmp_path / "t.th", allow_pickle=True)
    assert record.warp == "ndc"
    assert record.occupancy is None


@pytest.mark.parametrize(
    "change",
    [{"shadingMode": "Unknown"}, {"aabb": [1, 2]}, {"fea2denseAct": "exp"}, {"fea_pe": -1}, {"near_far": ["a", "b"]}],
)
def test_tensorf_refusals(tmp_path: Path, change: dict) -> None:
    save_tensorf(tmp_path / "t.th", mask=False, **change)
    with pytest.raises(UsageError):
        read_field(tmp_path / "t.th", allow_pickle=True)


def test_nerfacto(tmp_path: Path) -> None:
    folder = save_nerfstudio(tmp_path / "run", "nerfacto")
    record = read_field(folder, allow_pickle=True)
    state = nerfstudio_state("nerfacto")
    assert record.arch == "nerfstudio-hash"
    assert record.warp == "contract_inf"
    assert record.aabb == (-1, -1, -1, 1, 1, 1)
    assert (record.options["levels"], record.options["log2_table"]) == (4, 6)
    assert (record.options["finest_resolution"], record.options["density_scale"]) == (64, 1)
    mean = state["_model.field.embedding_appearance.embedding.weight"].mean(dim=0)
    assert torch.allclose(record.tensors["appearance"], mean)
    table = state["_model.field.mlp_base.model.0.hash_table"]
    assert torch.equal(record.tensors["mlp_base.model.0.hash_table"], table)
    assert record.details["dataparser"] == {"transform": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2]], "scale": 0.5}


def test_nerfstudio_config_is_read_as_plain_data(tmp_path: Path) -> None:
    folder = save_nerfstudio(tmp_path / "run", "instant-ngp", CONFIG)
    record = read_field(folder, allow_pickle=True)
    assert record.options["density_scale"] == 0.01
    assert record.warp == "aabb"
    assert record.background == (1, 1, 1)
    assert torch.equal(record.tensors["appearance"], torch.zeros(32))
    assert record.occupancy is not None
    assert record.occupancy.nonzero().tolist() == [[1, 2, 3]]
    model = read_plain_yaml(folder / "config.yml")["pipeline"]["model"]
    assert (model["sizes"], model["where"]) == ([1, 2], ["outputs", "a"])


def test_yaml_builds_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    (tmp_path / "config.yml").write_text(f"a: !!python/object/apply:os.system ['touch {marker}']\n")
    assert read_plain_yaml(tmp_path / "config.yml") == {"a": [f"touch {marker}"]}
    assert not marker.exists()
    (tmp_path / "deep.yml").write_text("[" * 5000)
    with pytest.raises(UsageError):
        read_plain_yaml(tmp_path / "deep.yml")


def test_vanilla_and_tensorf_of_nerfstudio(tmp_path: Path) -> None:
    record = read_field(save_nerfstudio(tmp_path / "vanilla", "vanilla"), allow_pickle=True)
    assert record.arch == "nerfstudio-vanilla"
    assert (record.options["position_frequencies"], record.options["direction_frequencies"]) == (10, 4)
    assert record.options["skip"] == 4
    record = read_field(save_nerfstudio(tmp_path / "tensorf", "tensorf"), allow_pickle=True)
    assert record.arch == "nerfstudio-vm"
    assert (record.options["resolution"], record.options["app_dim"]) == (8, 27)
    assert record.aabb == (-1.5, -1.5, -1.5, 1.5, 1.5, 1.5)


def test_tiny_cuda_nn_is_refused_by_name(tmp_path: Path) -> None:
    state = {"_model.field.mlp_base.model.params": torch.zeros(9), "_model.field.aabb": torch.zeros(2, 3)}
    torch.save({"step": 1, "pipeline": state}, tmp_path / "step-000000001.ckpt")
    with pytest.raises(UsageError, match="tiny-cuda-nn"):
        read_field(tmp_path / "step-000000001.ckpt", allow_pickle=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no step-\*\.ckpt"):
        read_field(tmp_path / "empty", allow_pickle=True)
