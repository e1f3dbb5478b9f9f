"""From a folder to a transformers module whose every weight is accounted for."""

from __future__ import annotations

import hashlib
import json
import re
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
from xarch_hf.facts import architecture_of, decoder_facts
from xarch_hf.quiet import quiet
from xarch_hf.tapping import IMPLEMENTATION
from xarch_hf.weights import CanonicalWeights
from xarch_hf.wording import brief, few

MAX_LAYERS = 4096
NOT_READ = ("auto_map", "transformers_weights", "fusion_config", "attn_implementation", "_attn_implementation")
"""Fields of config.json that would make transformers fetch files or choose code."""

DERIVED = re.compile(r"rotary_emb\.inv_freq$|attention\.(masked_)?bias$|attention\.rotary_emb\.\w+$")
"""Tensors that older checkpoints store although they follow from the configuration."""


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
    """

    where: str
    architecture: Architecture
    config: Any
    facts: DecoderFacts
    skeleton: nn.Module
    stored_layers: int

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return sum(p.numel() for p in self.skeleton.parameters())

    def fingerprint(self, checkpoint: CheckpointFolder) -> str:
        """sha256 over the weight files and the facts: two teachers with the same one give the same values."""
        digest = hashlib.sha256("\n".join(checkpoint.digests()).encode())
        digest.update(json.dumps(self.facts.to_json(), sort_keys=True).encode())
        return digest.hexdigest()


def describe_folder(folder: Path, where: str, layers: int | None = None) -> Described:
    """Describe the model of a folder from its configuration alone, and prove the table's entry on the meta device.

    Args:
        layers: keep only this many of the first layers.

    Raises:
        UsageError: not a model this source knows, or not a sound configuration.
        PlanError: the canonical names do not cover the model.
    """
    raw = read_config(folder, where)
    architecture = architecture_of(raw, where)
    config = make_config(raw, where, layers)
    try:
        with quiet(), torch.device("meta"):
            skeleton = _from_config(config)
        rotary = type(skeleton.get_submodule(architecture.rotary))(config)
    except Exception as e:
        # Whatever a configuration makes transformers raise, the configuration is what is wrong.
        raise UsageError(f"{where}: transformers cannot build this configuration: {brief(e)}") from e
    facts = decoder_facts(architecture, config, rotary, where)
    facts = replace(facts, eos=tuple(dict.fromkeys((*facts.eos, *generation_ends(folder)))))
    CanonicalWeights(skeleton, architecture, facts)
    return Described(where, architecture, config, facts, skeleton, raw.get("num_hidden_layers", facts.layers))


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
    _account(described, report)
    return module.to(device).eval().requires_grad_(False)


def random_module(described: Described, *, device: torch.device, seed: int) -> nn.Module:
    """The same architecture with transformers' own random initialisation, the same for the same seed."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        module = _from_config(described.config)
    return module.to(device).eval().requires_grad_(False)


def _account(described: Described, report: Mapping[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise PlanError(f"{described.where}: the files lack weights: {few(missing)}")
    block = re.compile(re.escape(described.architecture.block).replace(r"\{i\}", r"(\d+)") + r"\.")

    def expected(name: str) -> bool:
        layer = block.match(name)
        cut = layer is not None and described.facts.layers <= int(layer.group(1)) < described.stored_layers
        return cut or DERIVED.search(name) is not None

    extra = sorted(name for name in report["unexpected_keys"] if not expected(name))
    if extra:
        raise PlanError(f"{described.where}: the files hold weights this architecture has no use for: {few(extra)}")


def _from_config(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION)
