"""Item-to-item scores as plain arrays, in the two shapes that every pairwise model here takes.

A text encoder and ALS give dense factors (score = dot product of two rows); co-visitation and
transitions give a sparse matrix (score = the stored value, 0 elsewhere).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys import numeric_storage
from recsys.errors import RecsysError
from recsys.events import Bool, Float32, Int32, Int64
from recsys.numeric_storage import Storage


@dataclass(frozen=True)
class DensePairs:
    """score(h, c) = factors[h] · factors[c]; a row of zeros means "nothing is known of this item"."""

    factors: Float32  # (items, dim)

    def __len__(self) -> int:
        return len(self.factors)

    @cached_property
    def known(self) -> Bool:
        """(items,) whether anything is known of the item."""
        return known_rows(self.factors)


@dataclass(frozen=True)
class SparsePairs:
    """score(h, c) = the value stored for column c in row h, rows in CSR form.

    Shapes: `offsets` (items + 1,), `columns` and `values` (stored,). Rows are history items,
    columns are candidates; columns ascend within a row.
    """

    offsets: Int64
    columns: Int32
    values: Float32

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_csr(cls, matrix: sparse.csr_matrix) -> SparsePairs:
        """Take a square CSR matrix, its explicit zeros dropped and its columns sorted."""
        matrix = matrix.copy()
        matrix.eliminate_zeros()
        matrix.sort_indices()
        return cls(
            matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data.astype(np.float32)
        )

    @classmethod
    def empty(cls, items: int) -> SparsePairs:
        """Scores of `items` items that know no pair."""
        return cls(np.zeros(items + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))

    def to_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The three arrays as `NAME_offsets`, `NAME_columns` and `NAME_values`, in the narrowest types."""
        return {
            f"{name}_offsets": _narrowed(self.offsets),
            f"{name}_columns": _narrowed(self.columns),
            **numeric_storage.to_arrays(self.values, f"{name}_values"),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> SparsePairs:
        """Inverse of `to_arrays`.

        Raises:
            RecsysError: `pairs_invalid` or `table_invalid` where an array is missing or contradicts another.
        """
        offsets, columns = (_row_numbers(arrays, f"{name}_{part}") for part in ("offsets", "columns"))
        values = numeric_storage.from_arrays(arrays, f"{name}_values")
        whole = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == len(columns)
        if not whole or (offsets[1:] < offsets[:-1]).any() or values.shape != columns.shape:
            raise RecsysError("pairs_invalid", "offsets, columns and values contradict each other:", name)
        if len(columns) and not 0 <= columns.min() <= columns.max() < len(offsets) - 1:
            raise RecsysError("pairs_invalid", "a column is outside the items:", name)
        return cls(offsets.astype(np.int64), _as_int32(columns), values)

    @cached_property
    def csr(self) -> sparse.csr_matrix:
        """The same matrix for scipy, over the same arrays: not to be changed."""
        size = len(self)
        return sparse.csr_matrix((self.values, self.columns, self.offsets), shape=(size, size))

    def rounded(self, storage: Storage) -> SparsePairs:
        """The pairs with values that float16 can hold, without those that become zero (below 3e-8).

        Raises:
            ValueError: a value too large, or int8, which is for tables with rows.
        """
        if storage == "float32":
            return self
        values = numeric_storage.rounded(self.values, storage)
        return SparsePairs.from_csr(replace(self, values=values).csr)


def keep_strongest(matrix: sparse.csr_matrix, per_row: int) -> sparse.csr_matrix:
    """Keep the `per_row` largest values of each row; ties go to the smaller column."""
    matrix = matrix.tocsr()
    matrix.sort_indices()
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    place = np.arange(len(row)) - matrix.indptr[row]
    chosen = order[place < per_row]
    return sparse.csr_matrix((matrix.data[chosen], (row[chosen], matrix.indices[chosen])), shape=matrix.shape)


def _narrowed(index: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, none negative, in the smallest unsigned type."""
    return index.astype(np.min_scalar_type(int(index.max(initial=0))))


def _row_numbers(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    index = arrays.get(name)
    if index is None or index.ndim != 1 or index.dtype.kind not in "iu":
        raise RecsysError("pairs_invalid", "no list of row numbers:", name)
    return index


def _as_int32(columns: NDArray[Any]) -> Int32:
    """The same numbers, all below 2**31; in place where they have that width already."""
    return columns.view(np.int32) if columns.dtype == np.uint32 else columns.astype(np.int32, copy=False)


def known_rows(factors: Float32) -> Bool:
    """(rows,) whether anything is known of each row: zeros mean nothing is."""
    return np.asarray(factors.any(axis=1), np.bool_)
