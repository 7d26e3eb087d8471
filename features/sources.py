"""Which retrievers proposed a candidate, as columns."""

from __future__ import annotations

import math

from numba import njit

from recsys.events import Float32, Int32, Int64


@njit(cache=True, nogil=True)
def write_source_flags(source: Int32, columns: Int64, matrix: Float32) -> None:
    """Write 1 or 0 for each retriever, and how many there are; NaN where none proposed the candidate.

    Args:
        source: (rows,) bit mask over `recsys.requests.SOURCES`.
        columns: (sources + 1,) where each flag goes, and last their number; -1 nowhere.
        matrix: (features, rows) float32.
    """
    sources = len(columns) - 1
    for row in range(len(source)):
        count = 0
        for bit in range(sources):
            is_set = source[row] >> bit & 1
            count += is_set
            if columns[bit] >= 0:
                matrix[columns[bit], row] = is_set if source[row] else math.nan
        if columns[sources] >= 0:
            matrix[columns[sources], row] = count if source[row] else math.nan
