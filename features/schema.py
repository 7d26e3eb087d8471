"""The feature matrix's contract: names, order, types and parameters, and a digest that pins them.

A ranker is saved with the schema it was fitted on and refuses any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from recsys.errors import EXIT_SOFTWARE, RecsysError


@dataclass(frozen=True)
class FeatureField:
    """One column; `parameters` is its declaration as canonical JSON."""

    name: str
    dtype: str
    meaning: str
    parameters: str


@dataclass(frozen=True)
class FeatureSchema:
    """The columns of a feature matrix in order."""

    fields: tuple[FeatureField, ...]

    def __len__(self) -> int:
        return len(self.fields)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(column.name for column in self.fields)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, order, types and parameters. Wording of the meanings does not count."""
        pinned = [[column.name, column.dtype, column.parameters] for column in self.fields]
        return hashlib.sha256(json.dumps(pinned, separators=(",", ":")).encode()).hexdigest()

    def index(self, name: str) -> int:
        """Column number of `name`. Raises ValueError for an unknown one."""
        return self.names.index(name)

    def check(self, other: FeatureSchema) -> None:
        """Refuse a schema that is not this one.

        Raises:
            RecsysError: `feature_mismatch`, naming the first column that differs.
        """
        for place, (ours, theirs) in enumerate(zip(self.fields, other.fields, strict=False)):
            difference = _difference(ours, theirs)
            if difference:
                raise _mismatch(f"column {place} {difference}")
        if len(self) != len(other):
            raise _mismatch(f"expected {len(self)} columns, got {len(other)}")

    def check_names(self, names: Sequence[str]) -> None:
        """Refuse other names or another order, as a saved LightGBM model lists them.

        Raises:
            RecsysError: `feature_mismatch`, naming the first column that differs.
        """
        for place, (ours, theirs) in enumerate(zip(self.names, names, strict=False)):
            if ours != theirs:
                raise _mismatch(f"column {place} is `{theirs}`, expected `{ours}`")
        if len(self) != len(names):
            raise _mismatch(f"expected {len(self)} columns, got {len(names)}")

    def to_json(self) -> str:
        """The schema with its digest, for the model's folder and for readers."""
        return json.dumps({"digest": self.digest, "fields": [asdict(column) for column in self.fields]})

    @classmethod
    def from_json(cls, text: str | bytes) -> FeatureSchema:
        """Read `to_json` back.

        Raises:
            RecsysError: `feature_mismatch` where the stated digest is not that of the fields.
        """
        record = json.loads(text)
        schema = cls(tuple(FeatureField(**column) for column in record["fields"]))
        if schema.digest != record["digest"]:
            raise _mismatch("the stated digest is not that of the fields: the file was altered")
        return schema


def _difference(ours: FeatureField, theirs: FeatureField) -> str:
    if ours.name != theirs.name:
        return f"is `{theirs.name}`, expected `{ours.name}`"
    if ours.dtype != theirs.dtype:
        return f"`{ours.name}` is {theirs.dtype}, expected {ours.dtype}"
    if ours.parameters != theirs.parameters:
        return f"`{ours.name}` was declared as {theirs.parameters}, expected {ours.parameters}"
    return ""


def _mismatch(what: str) -> RecsysError:
    return RecsysError("feature_mismatch", what, "feature schema", exit_code=EXIT_SOFTWARE)
