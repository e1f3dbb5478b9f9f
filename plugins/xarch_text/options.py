"""Options of ``text:`` data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from xarch import Options

EXTENSIONS = (
    ".txt",
    ".text",
    ".md",
    ".markdown",
    ".rst",
    ".tex",
    ".py",
    ".pyi",
    ".html",
    ".htm",
    ".jsonl",
    ".ndjson",
    ".parquet",
)


class TextOptions(Options):
    """How files become documents and documents become rows of tokens."""

    field: str = Field("text", min_length=1, description="key of the text in JSON lines (`a.b` for nested), or column")
    extensions: list[str] = Field(
        default_factory=lambda: list(EXTENSIONS), description="files read from a folder, also with .gz; [] = all"
    )
    read_as: Literal["auto", "text", "records"] = Field(
        "auto", description="what files are; `auto`: by extension, else by their first bytes"
    )
    max_document_chars: int = Field(
        32_768, ge=256, description="longer documents are read and tokenised in pieces of at most this many characters"
    )
    validation: float = Field(0.04, ge=0, lt=1, description="fraction of documents for decisions during training")
    heldout: float = Field(0.08, ge=0, lt=1, description="fraction of documents for the final figures")
    calibration: float = Field(
        0.02, ge=0, lt=1, description="fraction of documents for ranges of 8-bit numbers and tables"
    )
    split_by: Literal["auto", "document", "piece"] = Field(
        "auto", description="`piece` splits inside files; `auto` does so for fewer than 50 files"
    )
    separator: Literal["eos", "bos", "none"] = Field("eos", description="special token after every document")
    cross_documents: bool = Field(False, description="let context run from one document into the next in a row")
    shuffle: bool = Field(True, description="read training documents in an order drawn from the seed")
    interleave: int = Field(8, ge=1, description="training documents read side by side; rows alternate between them")
    shuffle_records: int = Field(1024, ge=1, description="records of one file shuffled among each other")
    skip_limit: float = Field(0.2, ge=0, le=1, description="largest share of unusable documents before it is an error")
    tokenizer: Literal["teacher", "bytes"] = Field(
        "teacher", description="`bytes`: one token per UTF-8 byte, for teachers that read bytes"
    )

    @model_validator(mode="after")
    def _room_for_training(self) -> TextOptions:
        if self.validation + self.heldout + self.calibration >= 1:
            raise ValueError(
                f"validation {self.validation}, heldout {self.heldout} and calibration {self.calibration} "
                "leave nothing for training"
            )
        return self
