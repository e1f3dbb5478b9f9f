"""Loading of a transformers module from a folder, with every weight accounted for."""

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
"""Fields of config.json that would make transformers download files or select code."""


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
        notes: warnings about the configuration.
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
        """Return the number of parameters, counting a tied head once."""
        return sum(p.numel() for p in self.skeleton.parameters())

    def fingerprint(self, checkpoint: CheckpointFolder) -> str:
        """Return the SHA-256 of weight files and facts: teachers with the same fingerprint return the same values."""
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
    """Describe the model of a folder without its weights, and check the table's entry on the meta device.

    If the weight files are known, they determine whether the head is tied to the embedding, as in transformers: a
    configuration that ties them is overruled by files in which the two differ.

    Args:
        layers: keep only this many of the first layers.
        checkpoint: weights that must fit; pickles are checked only when loaded.
        stored: names and shapes of weights that are not on this machine.

    Raises:
        UsageError: the model type is not supported, or the configuration is invalid.
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
        # Any exception that transformers raises here is caused by the configuration.
        raise UsageError(f"{where}: transformers cannot build this configuration: {brief(e)}") from e
    notes = check_config_keys(raw, config, where)
    facts = decoder_facts(architecture, config, rotary, where)
    facts = replace(facts, eos=tuple(dict.fromkeys((*facts.eos, *generation_ends(folder)))))
    CanonicalWeights(skeleton, architecture, facts)
    return Described(where, architecture, config, facts, skeleton, raw.get("num_hidden_layers", facts.layers), notes)


def make_config(raw: Mapping[str, Any], where: str, layers: int | None = None) -> Any:
    """Build transformers' configuration object from a config.json, truncated to ``layers``.

    Raises:
        UsageError: the model is quantised, or its values are out of range or rejected by transformers.
    """
    from transformers import CONFIG_MAPPING

    if raw.get("quantization_config"):
        raise UsageError(
            f"{where} is quantised (config.json has a quantization_config); a teacher needs unquantised weights",
            "use the unquantised checkpoint, or a GGUF file of it (gguf:FILE)",
        )
    total = raw.get("num_hidden_layers", 1)
    if not isinstance(total, int) or not 1 <= total <= MAX_LAYERS:
        raise UsageError(f"{where}: num_hidden_layers is {total!r}, expected 1 to {MAX_LAYERS}")
    try:
        with quiet():
            config = CONFIG_MAPPING[raw["model_type"]].from_dict({k: v for k, v in raw.items() if k not in NOT_READ})
    except Exception as e:
        raise UsageError(f"{where}: transformers rejects config.json: {brief(e)}") from e
    if layers is not None:
        if layers > config.num_hidden_layers:
            raise UsageError(f"{where} has {config.num_hidden_layers} layers, but option layers requests {layers}")
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        config.num_hidden_layers = layers
    return config


def load_module(
    described: Described, checkpoint: CheckpointFolder, *, dtype: torch.dtype, device: torch.device, allow_pickle: bool
) -> nn.Module:
    """Load the module with its weights, in eval mode.

    Raises:
        UsageError: there are no weights, or they are damaged or do not have the configuration's shapes.
        PlanError: a weight is missing or unused; lists the names.
    """
    where = described.where
    if not checkpoint.files:
        raise UsageError(
            f"{where}: {checkpoint.folder} has no weights",
            "expected model.safetensors, or model.safetensors.index.json with its files",
        )
    stored = checkpoint.elements()
    if stored is not None and stored < described.parameters:
        raise UsageError(
            f"{where}: the configuration needs {described.parameters} values, but the files contain {stored}"
        )
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
    """Perform the checks that the plan makes for weights with readable headers.

    Raises:
        PlanError: they do not fit, or contain a separate head although the configuration ties it to the embedding.
    """
    architecture, where = described.architecture, described.where
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    fit = prove_fit(described.skeleton, described.config, architecture, shapes, described.stored_layers, where)
    head, embed = (tensors.get(f"{architecture.stems[stem]}.weight") for stem in ("head", "embed"))
    if fit.own_head and (head is None or embed is None or not torch.equal(head, embed)):
        raise PlanError(
            f"{where}: config.json ties the head to the embedding, but the files contain a different head",
            "set tie_word_embeddings to false in config.json, or write the weights as safetensors",
        )


def random_module(described: Described, *, device: torch.device, seed: int) -> nn.Module:
    """Build the architecture with transformers' own random initialisation, reproducible by seed."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        module = _from_config(described.config)
    return module.to(device).eval().requires_grad_(False)


def _from_config(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION)
