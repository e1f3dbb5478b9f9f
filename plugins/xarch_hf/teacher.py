"""A transformers decoder as a teacher.

Legend: B batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from xarch import Batch, Tap, Teacher, UsageError
from xarch_decoder.factored import FactoredLogits
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.decoder import make_sequence
from xarch_decoder.taps import teacher_taps
from xarch_hf.architectures import Architecture
from xarch_hf.tapping import Run, on_input, on_output
from xarch_hf.tokenizer import load_tokenizer, save_tokenizer
from xarch_hf.weights import CanonicalWeights


class HFTeacher(Teacher):
    """The original transformers module, frozen and in eval mode.

    Positions restart with every document of ``segment_ids``, and attention never crosses documents. A run stops at the
    last wanted tap: later blocks and the output projection are not computed.

    Args:
        module: causal language model whose attention implementation is ``xarch``.
        architecture: the names inside it.
        facts: its description.
        ref: its reference, with the scheme.
        fingerprint: SHA-256 that identifies its weights and facts.
        folder: folder with its tokenizer files, or None.

    Raises:
        PlanError: a weight of the module is not covered exactly once by the canonical names.
    """

    family = "decoder"
    facts: DecoderFacts

    def __init__(
        self,
        module: nn.Module,
        architecture: Architecture,
        facts: DecoderFacts,
        *,
        ref: str,
        fingerprint: str,
        folder: Path | None = None,
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.architecture, self.facts, self.ref, self.fingerprint = architecture, facts, ref, fingerprint
        self._folder, self._tokenizer = folder, None
        self._weights = CanonicalWeights(module, architecture, facts)
        self._taps = teacher_taps(facts)
        self._body = module.get_submodule(architecture.body)
        self._hooks = dict(self._hook_table())

    def taps(self) -> Mapping[str, Tap]:
        return self._taps

    def run(self, batch: Batch, wanted: Collection[str], sink: Callable[[str, Any], None]) -> None:
        """See :meth:`xarch.TapModel.run`; the batch has ``input_ids`` [B, L] and may have ``segment_ids`` [B, L].

        Raises:
            UsageError: a wanted tap does not exist, or the batch holds no token ids.
        """
        unknown = sorted(set(wanted) - set(self._taps))
        if unknown:
            raise UsageError(f"{self.ref} has no tap {', '.join(unknown)}", "`xarch inspect` lists a teacher's taps")
        ids_BL = batch.get("input_ids")
        if ids_BL is None:
            raise UsageError(f"{self.ref} reads input_ids, but the batch has {', '.join(batch.tensors) or 'nothing'}")
        if not wanted:
            return
        sequence = make_sequence(ids_BL, batch.get("segment_ids"))
        hooks = [self._hooks[name] for name in self._taps if name in self._hooks and name in set(wanted)]
        with Run(wanted, sink, sequence).active(hooks):
            self._body(input_ids=ids_BL, position_ids=sequence.positions_BL, use_cache=False)

    def work(self, sample: Mapping[str, Any]) -> float:
        return self.facts.work(sample)

    def packed(self, name: str, value: Any) -> Any:
        return value.x_BLD if isinstance(value, FactoredLogits) else value

    def unpacked(self, name: str, stored: Tensor) -> Any:
        return self._logits(stored) if name == "logits" else stored

    def constants(self) -> Mapping[str, Tensor]:
        """Return ``head.weight`` [V, D], the output projection."""
        return {"head.weight": self._weights["embed.weight" if self.facts.tied else "head.weight"]}

    def weights(self) -> Mapping[str, Tensor]:
        return self._weights

    def processor(self) -> Any:
        """Return the tokenizer, or None if the weights have none."""
        if self._tokenizer is None and self._folder is not None:
            self._tokenizer = load_tokenizer(self._folder)
        return self._tokenizer

    def save_processor(self, folder: str) -> None:
        tokenizer = self.processor()
        if tokenizer is not None:
            save_tokenizer(tokenizer, Path(folder))

    def _hook_table(self) -> Any:
        """Return (tap, hook) for every tap that is a module's input or output; attention pushes the others."""
        stems = {canonical: own for canonical, own in self.architecture.stems.items() if isinstance(own, str)}
        for layer in range(self.facts.layers):

            def part(name: str, layer: int = layer) -> nn.Module:
                return self.module.get_submodule(name.replace("{i}", str(layer)))

            block = part(self.architecture.block)
            yield f"blocks.{layer}.input", on_input(block, f"blocks.{layer}.input")
            norm1, out = part(stems["blocks.{i}.norm1"]), part(stems["blocks.{i}.attention.o"])
            yield f"blocks.{layer}.mixer_in", on_output(norm1, f"blocks.{layer}.mixer_in")
            yield f"blocks.{layer}.mixer_out", on_output(out, f"blocks.{layer}.mixer_out")
            yield f"blocks.{layer}.output", on_output(block, f"blocks.{layer}.output")
        norm = self.module.get_submodule(stems["norm"])
        yield "final", on_output(norm, "final")

        yield "logits", on_output(norm, "logits", self._logits)

    def _logits(self, x_BLD: Tensor) -> FactoredLogits:
        head = self.module.get_submodule(str(self.architecture.stems["head"]))
        return FactoredLogits(
            x_BLD, head.get_parameter("weight"), getattr(head, "bias", None), self.facts.final_softcap
        )
