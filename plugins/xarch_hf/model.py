"""From a folder to a transformers module whose every weight is accounted for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xarch import PlanError, UsageError
from xarch_decoder.facts import DecoderFacts
from xarch_hf.architectures import Architecture
from xarch_hf.checkpoint import CheckpointFolder, generation_ends, read_config
from xarch_hf.config_keys import check_config_keys
from xarch_hf.facts import architecture_of, decoder_facts
from xarch_hf.fitting import Shapes, check_report, head_is_embedding, prove_fit, stored_shapes
from xarch_hf.quiet import quiet
from xarch_hf.tapping import IMPLEMENTATION
from xarch_hf.weights import CanonicalWeights
from xarch_hf.wording import brief

MAX_LAYERS = 4096
NOT_READ = ("auto_map", "transformers_weights", "fusion_config", "attn_implementation", "_attn_implementation")
"""Fields of config.json that would make transformers fetch files or choose code."""


@dataclass(frozen=True, slots=True)
class Described:
    """A model without its weights.

    Attributes:
        where: the reference, with its scheme.
        architecture: the names inside it.
        config: transformers' configuration.
        facts: the family's.
        skeleton: the module on the meta device.
        stored_layers: layers of the checkpoint, of which ``facts.layers`` are kept.
        notes: what a person should know of the configuration.
    """

    where: str
    architecture: Architecture
    config: Any
    facts: DecoderFacts
    skeleton: nn.Module
    stored_layers: int
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return sum(p.numel() for p in self.skeleton.parameters())

    def fingerprint(self, checkpoint: CheckpointFolder) -> str:
        """sha256 over the weight files and the facts: two teachers with the same one give the same values."""
        digest = hashlib.sha256("\n".join(checkpoint.digests()).encode())
        digest.update(json.dumps(self.facts.to_json(), sort_keys=True).encode())
        return digest.hexdigest()


def describe_folder(
    folder: Path,
    where: str,
    layers: int | None = None,
    checkpoint: CheckpointFolder | None = None,
    stored: Shapes | None = None,
) -> Described:
    """Describe the model of a folder without its weights, and prove the table's entry on the meta device.

    Where the weight files are known, they decide whether the head is the embedding, as they do in transformers: a
    configuration that says so is wrong if they hold two that differ.

    Args:
        layers: keep only this many of the first layers.
        checkpoint: weights that have to fit; pickles are believed until they are read.
        stored: names and shapes of weights that are not on this machine.

    Raises:
        UsageError: not a model this source knows, or not a sound configuration.
        PlanError: the canonical names do not cover the model, or stored weights do not fit it.
    """
    raw = read_config(folder, where)
    described = _described(raw, folder, where, layers)
    readable = checkpoint is not None and checkpoint.files and not checkpoint.pickled
    shapes = stored_shapes(checkpoint) if checkpoint is not None and readable else stored
    if shapes is None:
        return described
    fit = prove_fit(
        described.skeleton, described.config, described.architecture, shapes, described.stored_layers, where
    )
    if not fit.own_head or (
        checkpoint is not None and readable and head_is_embedding(checkpoint, described.architecture)
    ):
        return described
    return _described({**raw, "tie_word_embeddings": False}, folder, where, layers)


def _described(raw: Mapping[str, Any], folder: Path, where: str, layers: int | None) -> Described:
    architecture = architecture_of(raw, where)
    config = make_config(raw, where, layers)
    try:
        with quiet(), torch.device("meta"):
            skeleton = _from_config(config)
        rotary = type(skeleton.get_submodule(architecture.rotary))(config)
    except Exception as e:
        # Whatever a configuration makes transformers raise, the configuration is what is wrong.
        raise UsageError(f"{where}: transformers cannot build this configuration: {brief(e)}") from e
    notes = check_config_keys(raw, config, where)
    facts = decoder_facts(architecture, config, rotary, where)
    facts = replace(facts, eos=tuple(dict.fromkeys((*facts.eos, *generation_ends(folder)))))
    CanonicalWeights(skeleton, architecture, facts)
    return Described(where, architecture, config, facts, skeleton, raw.get("num_hidden_layers", facts.layers), notes)


def make_config(raw: Mapping[str, Any], where: str, layers: int | None = None) -> Any:
    """transformers' configuration object from the content of a config.json, cut to ``layers``.

    Raises:
        UsageError: quantised, out of bounds, or refused by transformers.
    """
    from transformers import CONFIG_MAPPING

    if raw.get("quantization_config"):
        raise UsageError(
            f"{where} is quantised (config.json has a quantization_config); a teacher needs plain weights",
            "use the unquantised checkpoint, or a GGUF file of it (gguf:FILE)",
        )
    total = raw.get("num_hidden_layers", 1)
    if not isinstance(total, int) or not 1 <= total <= MAX_LAYERS:
        raise UsageError(f"{where}: num_hidden_layers is {total!r}, wanted 1 to {MAX_LAYERS}")
    try:
        with quiet():
            config = CONFIG_MAPPING[raw["model_type"]].from_dict({k: v for k, v in raw.items() if k not in NOT_READ})
    except Exception as e:
        raise UsageError(f"{where}: config.json is refused by transformers: {brief(e)}") from e
    if layers is not None:
        if layers > config.num_hidden_layers:
            raise UsageError(f"{where} has {config.num_hidden_layers} layers, the option layers asks for {layers}")
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        config.num_hidden_layers = layers
    return config


def load_module(
    described: Described, checkpoint: CheckpointFolder, *, dtype: torch.dtype, device: torch.device, allow_pickle: bool
) -> nn.Module:
    """The module with its weights, in eval mode.

    Raises:
        UsageError: there are no weights, they are damaged, or do not have the configuration's shapes.
        PlanError: a weight is missing, or the files hold weights the model has no use for; they are listed.
    """
    where = described.where
    if not checkpoint.files:
        raise UsageError(
            f"{where}: {checkpoint.folder} has no weights",
            "wanted: model.safetensors, or model.safetensors.index.json with its files",
        )
    stored = checkpoint.elements()
    if stored is not None and stored < described.parameters:
        raise UsageError(f"{where}: the configuration needs {described.parameters} values, the files hold {stored}")
    tensors = checkpoint.load(allow_pickle)
    if checkpoint.pickled:
        _prove_pickled(described, tensors)
    build = type(described.skeleton)
    try:
        with quiet():
            module, report = build.from_pretrained(  # type: ignore[attr-defined]
                None,
                config=described.config,
                state_dict=tensors,
                dtype=dtype,
                attn_implementation=IMPLEMENTATION,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError, KeyError) as e:
        raise UsageError(f"{where}: the weights do not fit the configuration: {brief(e)}") from e
    check_report(report, described.architecture, range(described.facts.layers, described.stored_layers), where)
    return module.to(device).eval().requires_grad_(False)


def _prove_pickled(described: Described, tensors: Mapping[str, torch.Tensor]) -> None:
    """What the plan does for weights whose headers can be read.

    Raises:
        PlanError: they do not fit, or hold a head of their own where the configuration says that it is the embedding.
    """
    architecture, where = described.architecture, described.where
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fit = prove_fit(described.skeleton, described.config, architecture, shapes, described.stored_layers, where)
    head, embed = (tensors.get(f"{architecture.stems[stem]}.weight") for stem in ("head", "embed"))
    if fit.own_head and (head is None or embed is None or not torch.equal(head, embed)):
        raise PlanError(
            f"{where}: config.json says that the head is the embedding, the files hold another head",
            "set tie_word_embeddings to false in config.json, or write the weights as safetensors",
        )


def random_module(described: Described, *, device: torch.device, seed: int) -> nn.Module:
    """The same architecture with transformers' own random initialisation, the same for the same seed."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        module = _from_config(described.config)
    return module.to(device).eval().requires_grad_(False)


def _from_config(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION)
