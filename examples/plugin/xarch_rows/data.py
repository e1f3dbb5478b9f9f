"""``rows:TABLE``: a classification table of scikit-learn, standardised."""

import torch
from pydantic import Field

from xarch import DataInfo, DataProvider, IndexedData, IndexedStream, Options, TensorInfo, UsageError, split_indices

TABLES = ("digits", "wine", "breast_cancer", "iris")


class Table(IndexedData):
    """The rows of a table, with columns of mean 0 and deviation 1."""

    def __init__(self, name, noise):
        from sklearn import datasets

        found = getattr(datasets, f"load_{name}")()
        x = torch.tensor(found.data, dtype=torch.float32)
        self.x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
        self.y = torch.tensor(found.target, dtype=torch.int64)
        self.noise, self.augments = noise, noise > 0

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index, generator):
        extra = self.noise * torch.randn(self.x.shape[1], generator=generator) if self.augments else 0.0
        return {"rows": self.x[index] + extra, "labels": self.y[index]}


class TableData(DataProvider):
    """Splits are shares of one permutation."""

    class Options(Options):
        """Options of the data."""

        noise: float = Field(0.0, ge=0, description="standard deviation of noise on training rows")

    def describe(self, request):
        if request.ref not in TABLES:
            raise UsageError(f"rows:{request.ref}: there is no such table", f"one of {', '.join(TABLES)}")
        table = Table(request.ref, 0.0)
        samples = {split: len(self._split(table, split)) for split in ("train", "heldout")}
        facts = {"classes": len(table.y.unique()), "columns": table.x.shape[1], "samples": samples}
        tensors = {"rows": TensorInfo("BC", {"C": facts["columns"]}), "labels": TensorInfo("B")}
        digest = f"sklearn-{request.ref}-{len(table)}"
        return DataInfo(f"{request.ref} of scikit-learn", digest, "row", tensors=tensors, facts=facts)

    def open(self, request):
        table = Table(request.ref, request.options.noise if request.split == "train" else 0.0)
        return IndexedStream(table, request, indices=self._split(table, request.split))

    def _split(self, table, split):
        return split_indices(len(table), split, validation=0.1, calibration=0.1, heldout=0.2)
