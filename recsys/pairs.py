"""Item-to-item scores as plain arrays, in the two shapes that every pairwise model here takes.

A text encoder and ALS give dense factors (score = dot product of two rows); co-visitation and
transitions give a sparse matrix (score = the stored value, 0 elsewhere).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.events import Float32, Int32, Int64


@dataclass(frozen=True)
class DensePairs:
    """score(h, c) = factors[h] · factors[c]; a row of zeros means "nothing is known of this item"."""

    factors: NDArray[np.float32]  # (items, dim)

    def __len__(self) -> int:
        return len(self.factors)


@dataclass(frozen=True)
class SparsePairs:
    """score(h, c) = the value stored for column c in row h, rows in CSR form.

    Shapes: `offsets` (items + 1,), `columns` and `values` (stored,). Rows are history items, columns candidates.
    """

    offsets: Int64
    columns: Int32
    values: Float32

    def __len__(self) -> int:
        return len(self.offsets) - 1
