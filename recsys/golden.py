"""Golden requests: rows whose scores are known, stored in the bundle to show that a scorer is whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from recsys.errors import RecsysError
from recsys.storage import json_bytes, parse_json

GOLDEN = "golden.json"


@dataclass(frozen=True)
class Golden:
    """Requests whose scores are known: one row a (request, item), all sequences of one length.

    `source` is the names of the retrievers joined by "+", "" for none; `timestamp` is epoch seconds. Ids
    are all strings or all integers. A scorer that is whole gives `score` to 1e-6.
    """

    request: Sequence[str]
    user_id: Sequence[str] | Sequence[int]
    item_id: Sequence[str] | Sequence[int]
    source: Sequence[str]
    timestamp: Sequence[float]
    score: Sequence[float]

    def __len__(self) -> int:
        return len(self.score)

    def to_files(self) -> dict[str, bytes]:
        """One JSON file of columns. Raises ValueError for a score that is not finite."""
        columns = {name: list(getattr(self, name)) for name in self.__dataclass_fields__}
        return {GOLDEN: json_bytes(columns)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Golden:
        """Read `golden.json`; raises RecsysError `manifest_invalid` for missing or uneven columns."""
        columns = parse_json(files[GOLDEN], GOLDEN)
        names = tuple(cls.__dataclass_fields__)
        if not isinstance(columns, dict) or sorted(columns) != sorted(names):
            raise RecsysError(
                "manifest_invalid", f"golden requests need the columns {', '.join(names)}", GOLDEN
            )
        if not all(isinstance(values, list) for values in columns.values()):
            raise RecsysError("manifest_invalid", "golden columns must be lists", GOLDEN)
        if len({len(values) for values in columns.values()}) != 1:
            raise RecsysError("manifest_invalid", "golden columns differ in length", GOLDEN)
        return cls(**columns)


def check_golden(expected: ArrayLike, actual: ArrayLike, tolerance: float = 1e-6) -> None:
    """Compare golden scores with what a scorer gives now, both of shape (rows,).

    Raises:
        RecsysError: `non_finite_scores` for a NaN or infinite actual score; `golden_mismatch` for another
            number of rows or a score further off than `tolerance`. Both name the first such row.
    """
    want, got = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if want.shape != got.shape:
        raise RecsysError("golden_mismatch", f"expected {len(want)} scores, actual {got.shape}", GOLDEN)
    checks = (
        ("non_finite_scores", ~np.isfinite(got)),
        ("golden_mismatch", ~(np.abs(got - want) <= tolerance)),
    )
    for code, wrong in checks:
        if wrong.any():
            row = int(np.argmax(wrong))
            raise RecsysError(code, f"row {row}: expected {want[row]:.9g}, actual {got[row]:.9g}", GOLDEN)
