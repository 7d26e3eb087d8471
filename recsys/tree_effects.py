"""By how much each feature moved the sum of trees: Shapley values along the paths of the trees.

The game is that of Lundberg et al. (2018, "Consistent individualized feature attribution for tree
ensembles"): a feature that is not known sends a row down both ways, in the shares of the fit. A leaf's part
in it is a product over the features of its path, so that its Shapley values are integrals of polynomials,
which Gauss and Legendre's points give exactly (compare Yu et al. 2022, "Linear TreeShap"). Nothing is
subtracted that could cancel, and many rows go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from recsys.events import Bool, Float32, Float64, Int32, Int64

_LEAST_SHARE = 1e-30
"""For a way that no row of the fit took."""


class _Paths(NamedTuple):
    """The path of each leaf as conditions on its features, each feature once.

    Attributes:
        starts: (leaves + 1,) first condition of each leaf.
        feature: (conditions,) column.
        above, up_to: (conditions,) a row is on the path where its value is not up to the one, NaN for none,
            but up to the other. `takes_nan`: (conditions,) whether NaN is on it.
        share: (conditions,) of the fit's rows at the feature's nodes, which part went on towards the leaf.
        values: (leaves,) leaf values.
    """

    starts: Int64
    feature: Int64
    above: Float32
    up_to: Float32
    takes_nan: Bool
    share: Float64
    values: Float64


@dataclass(frozen=True)
class TreeEffects:
    """The leaves of all trees, ready to explain rows.

    Attributes:
        paths: of the leaves.
        points, weights: (most conditions + 1, most points) of integrals over 0..1 that are exact for products
            of so many factors but one.
        base: mean of the trees' sum over the rows of the fit.
        features: columns.
    """

    paths: _Paths
    points: Float64
    weights: Float64
    base: float
    features: int

    @classmethod
    def of(
        cls,
        children: tuple[Int32, Int32],
        splits: tuple[Int32, Float32, Int32],
        counts: tuple[Float64, Float64],
        leaves: Float64,
        features: int,
    ) -> TreeEffects:
        """Take trees as `forest.Forest` holds them.

        Args:
            children: left and right one of each node, each (nodes,).
            splits: feature, threshold and the child that takes NaN, each (nodes,).
            counts: rows of the fit in each node (nodes,) and leaf (leaves,).
            leaves: (leaves,) values.
            features: columns of the matrix.
        """
        paths, base = _paths_of(children, splits, counts, leaves)
        most = int(np.diff(paths.starts).max(initial=0))
        points = np.zeros((most + 1, most // 2 + 1))
        weights = np.zeros_like(points)
        for factors in range(1, most + 1):
            count = (factors + 1) // 2
            at, weight = np.polynomial.legendre.leggauss(count)
            points[factors, :count], weights[factors, :count] = (at + 1.0) / 2.0, weight / 2.0
        return cls(paths, points, weights, base, features)

    def of_rows(self, matrix: Float32) -> Float64:
        """(rows, features + 1) effects on each row of `matrix` (rows, features), and last the base."""
        columns = np.ascontiguousarray(matrix.T, np.float32)
        out = np.zeros((self.features + 1, len(matrix)))
        out[-1] = self.base
        if len(matrix):
            _add_effects(self.paths, self.points, self.weights, columns, out)
        return out.T


@njit(cache=True, nogil=True)
def _parents(left: Int32, right: Int32, leaves: int) -> tuple[Int64, Int64]:
    """The node above each node and each leaf, -1 for a root."""
    of_node, of_leaf = np.full(len(left), -1, np.int64), np.full(leaves, -1, np.int64)
    for node in range(len(left)):
        for child in (left[node], right[node]):
            if child >= 0:
                of_node[child] = node
            else:
                of_leaf[~child] = node
    return of_node, of_leaf


@njit(cache=True, nogil=True)
def _paths_of(
    children: tuple[Int32, Int32],
    splits: tuple[Int32, Float32, Int32],
    counts: tuple[Float64, Float64],
    leaves: Float64,
) -> tuple[_Paths, float]:
    """Each leaf's way up to its root, with the conditions on one feature made one."""
    left, right = children
    feature, threshold, missing = splits
    of_node, of_leaf = counts
    parent, parent_of_leaf = _parents(left, right, len(leaves))
    starts, room = np.zeros(len(leaves) + 1, np.int64), 0
    for leaf in range(len(leaves)):
        node = parent_of_leaf[leaf]
        while node >= 0:
            room += 1
            node = parent[node]
    paths = _Paths(
        starts,
        np.empty(room, np.int64),
        np.full(room, np.float32(np.nan)),
        np.full(room, np.float32(np.inf)),
        np.ones(room, np.bool_),
        np.ones(room, np.float64),
        leaves,
    )
    used, base = 0, 0.0
    for leaf in range(len(leaves)):
        node, child, count, part = parent_of_leaf[leaf], ~leaf, of_leaf[leaf], 1.0
        while node >= 0:
            place = starts[leaf]
            while place < used and paths.feature[place] != feature[node]:
                place += 1
            if place == used:
                paths.feature[place] = feature[node]
                used += 1
            share = max(count / max(of_node[node], 1.0), _LEAST_SHARE)
            paths.share[place] *= share
            part *= share
            if child == left[node]:
                paths.up_to[place] = min(paths.up_to[place], threshold[node])
            elif not paths.above[place] >= threshold[node]:
                paths.above[place] = threshold[node]
            paths.takes_nan[place] &= child == missing[node]
            child, count, node = node, of_node[node], parent[node]
        starts[leaf + 1] = used
        base += leaves[leaf] * part
    return paths, base


@njit(cache=True, nogil=True, error_model="numpy")
def _add_effects(paths: _Paths, points: Float64, weights: Float64, columns: Float32, out: Float64) -> None:
    """Add each leaf's effects to `out` (features + 1, rows)."""
    rows = columns.shape[1]
    most = len(points)
    on_path, found = np.empty((most, rows)), np.empty((most, rows))
    product = np.empty(rows)
    for leaf in range(len(paths.values)):
        first, count = paths.starts[leaf], paths.starts[leaf + 1] - paths.starts[leaf]
        for nth in range(count):
            _follow(paths, first + nth, columns[paths.feature[first + nth]], on_path[nth])
        found[:count] = 0.0
        for point in range((count + 1) // 2):
            at, weight = points[count, point], weights[count, point]
            product[:] = weight
            for nth in range(count):
                without = paths.share[first + nth] * (1.0 - at)
                for row in range(rows):
                    product[row] *= without + at * on_path[nth, row]
            for nth in range(count):
                without = paths.share[first + nth] * (1.0 - at)
                for row in range(rows):
                    found[nth, row] += product[row] / (without + at * on_path[nth, row])
        for nth in range(count):
            share, effects = paths.share[first + nth], out[paths.feature[first + nth]]
            for row in range(rows):
                effects[row] += paths.values[leaf] * (on_path[nth, row] - share) * found[nth, row]


@njit(cache=True, nogil=True)
def _follow(paths: _Paths, condition: int, column: Float32, out: Float64) -> None:
    """1 for each row that is on the path as far as this condition goes, 0 for others, to `out` (rows,)."""
    above, up_to = paths.above[condition], paths.up_to[condition]
    nan = 1.0 if paths.takes_nan[condition] else 0.0
    for row in range(len(column)):
        value = column[row]
        within = 1.0 if not value <= above and value <= up_to else 0.0
        out[row] = nan if value != value else within
