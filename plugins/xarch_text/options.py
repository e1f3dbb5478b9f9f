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


class ReadingOptions(Options):
    """Which files are read, how they are divided among splits, and how their text becomes tokens."""

    extensions: list[str] = Field(
        default_factory=lambda: list(EXTENSIONS),
        description="extensions of files to read from a folder, also with .gz; [] = all",
    )
    read_as: Literal["auto", "text", "records"] = Field(
        "auto", description="kind of the files; `auto`: by extension, else by their first bytes"
    )
    validation: float = Field(0.04, ge=0, lt=1, description="fraction of documents for decisions during training")
    heldout: float = Field(0.08, ge=0, lt=1, description="fraction of documents for the final figures")
    calibration: float = Field(
        0.02, ge=0, lt=1, description="fraction of documents for calibrating quantisation ranges and tables"
    )
    shuffle: bool = Field(True, description="read training documents in a random order determined by the seed")
    shuffle_records: int = Field(
        1024, ge=1, le=1 << 24, description="number of records of a file that are shuffled together"
    )
    skip_limit: float = Field(
        0.2, ge=0, le=1, description="maximum share of unusable documents before an error is raised"
    )
    tokenizer: Literal["teacher", "bytes"] = Field(
        "teacher", description="`bytes`: one token per UTF-8 byte, for teachers that read bytes"
    )

    @model_validator(mode="after")
    def _room_for_training(self) -> ReadingOptions:
        if self.validation + self.heldout + self.calibration >= 1:
            raise ValueError(
                f"validation {self.validation}, heldout {self.heldout} and calibration {self.calibration} "
                "leave nothing for training"
            )
        return self


class TextOptions(ReadingOptions):
    """Options for splitting files into documents and documents into rows of tokens."""

    field: str = Field("text", min_length=1, description="key of the text in JSON lines (`a.b` for nested), or column")
    max_document_chars: int = Field(
        32_768,
        ge=256,
        le=1 << 26,
        description="longer documents are read and tokenized in pieces of at most this many characters",
    )
    split_by: Literal["auto", "document", "piece"] = Field(
        "auto", description="`piece` splits inside files; `auto` does so for fewer than 50 files"
    )
    separator: Literal["eos", "bos", "none"] = Field("eos", description="special token after every document")
    cross_documents: bool = Field(False, description="let context cross document boundaries within a row")
    interleave: int = Field(
        8, ge=1, le=1 << 16, description="training documents read in parallel; rows alternate between them"
    )
