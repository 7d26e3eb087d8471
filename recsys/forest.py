"""Trees of a LightGBM model as flat arrays.

Read from the model's text by our own parser: a damaged text is refused here, where LightGBM's parser kills
the process. Scores are LightGBM's raw scores to the bit, because thresholds are rounded towards what float32
can tell apart and trees are added in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import RecsysError
from recsys.events import Float32, Float64, Int32
from recsys.leaf_masks import CHUNK, LeafMasks, add_up
from recsys.tree_effects import TreeEffects

NODE = np.dtype(
    [
        ("threshold", "f4"),
        ("feature", "i4"),
        ("left", "i4"),
        ("right", "i4"),
        ("missing", "i4"),
        ("rows", "f8"),
    ]
)
"""A decision: left where the value is at most the threshold, `missing` where it is NaN; ~leaf ends it.

`rows` is how many of the fit came here.
"""

_CATEGORICAL, _DEFAULT_LEFT, _MISSING_SHIFT = 1, 2, 2
_MISSING_IS_NONE, _MISSING_IS_ZERO, _MISSING_IS_NAN = range(3)


@dataclass(frozen=True)
class Forest:
    """Decision trees whose leaf values add up.

    Attributes:
        features: column names, as the model was fitted on them.
        nodes: (nodes,) of dtype `NODE`, the trees one behind the other.
        leaves: (leaves,) values.
        leaf_rows: (leaves,) how many rows of the fit each leaf had.
        roots: (trees,) first node of each tree, ~leaf for a tree without a decision.
    """

    features: tuple[str, ...]
    nodes: NDArray[np.void]
    leaves: Float64
    leaf_rows: Float64
    roots: Int32

    def __len__(self) -> int:
        return len(self.roots)

    @classmethod
    def parse(cls, text: str) -> Forest:
        """Read LightGBM's text format (version 4, one output, numerical splits).

        Raises:
            RecsysError: `ranker_invalid` for a text that is damaged, or that holds what our ranker never
                has: categorical splits, zero as missing, linear leaves, several outputs.
        """
        header, *blocks = text.split("\nTree=")
        try:
            settings = _fields(header)
            if settings["num_class"] != "1" or settings["num_tree_per_iteration"] != "1":
                raise ValueError("it has several outputs")
            features = tuple(settings["feature_names"].split())
            sizes = [int(size) for size in settings.get("tree_sizes", "").split()]
            if len(sizes) != len(blocks) or not blocks or "end of trees" not in text:
                raise ValueError(f"{len(sizes)} trees are announced, {len(blocks)} are there")
            trees = [_tree(block.split("\n\n", 1)[0], len(features)) for block in blocks]
        except (KeyError, ValueError, IndexError, OverflowError) as error:
            raise RecsysError("ranker_invalid", f"the trees cannot be read: {error}", "ranker.txt") from error
        return _joined(features, trees)

    def score(self, matrix: Float32, *, threads: int = 1) -> Float64:
        """(rows,) sums of leaf values for (rows, features) float32; NaN goes the way it went in the fit.

        Raises:
            ValueError: the matrix has another width.
        """
        if matrix.ndim != 2 or matrix.shape[1] != len(self.features):
            raise ValueError(f"the trees read {len(self.features)} columns, not {matrix.shape[1:]}")
        out = np.zeros(len(matrix))
        parts = [slice(first, first + CHUNK) for first in range(0, len(matrix), CHUNK)]

        def add(rows: slice) -> None:
            add_up(self._masks, np.ascontiguousarray(matrix[rows].T, np.float32), out[rows])

        if threads <= 1 or len(parts) < threads:
            for rows in parts:
                add(rows)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(add, parts))
        return out

    def effects(self, matrix: Float32) -> Float64:
        """(rows, features + 1) by how much each feature moved each sum, and last where all start.

        A row adds up to its score; see `tree_effects`.
        """
        return self._effects.of_rows(matrix)

    @cached_property
    def _masks(self) -> LeafMasks:
        return LeafMasks.of(self.nodes, self.leaves, self.roots)

    @cached_property
    def _effects(self) -> TreeEffects:
        column = {name: self.nodes[name].copy() for name in NODE.names or ()}
        return TreeEffects.of(
            (column["left"], column["right"]),
            (column["feature"], column["threshold"], column["missing"]),
            (column["rows"], self.leaf_rows),
            self.leaves,
            len(self.features),
        )


@dataclass(frozen=True)
class _Tree:
    nodes: NDArray[np.void]
    leaves: Float64
    leaf_rows: Float64


def _fields(block: str) -> dict[str, str]:
    lines = (line.partition("=") for line in block.splitlines())
    return {name: value for name, equals, value in lines if equals}


def _numbers(fields: Mapping[str, str], name: str, dtype: type[Any], length: int) -> NDArray[Any]:
    values = np.array(fields[name].split(), np.float64 if dtype is float else np.int64)
    if len(values) != length:
        raise ValueError(f"{name} has {len(values)} values, {length} are due")
    return values


def _tree(block: str, features: int) -> _Tree:
    """One tree of the text, its children and leaves numbered from 0."""
    fields = _fields(block)
    count = int(fields["num_leaves"])
    if count < 1 or fields.get("num_cat", "0") != "0" or fields.get("is_linear", "0") != "0":
        raise ValueError("a tree is empty, categorical or linear")
    leaves = _numbers(fields, "leaf_value", float, count)
    if not np.isfinite(leaves).all():
        raise RecsysError("non_finite_scores", "a leaf of the ranker is not finite", "ranker.txt")
    nodes, leaf_rows = np.zeros(count - 1, NODE), np.zeros(count)
    if count > 1:
        _fill(nodes, fields, features)
        leaf_rows = _numbers(fields, "leaf_count", int, count).astype(np.float64)
    return _Tree(nodes, leaves, leaf_rows)


def _fill(nodes: NDArray[np.void], fields: Mapping[str, str], features: int) -> None:
    """Write the decisions; refuses children that are no tree, so that every walk ends."""
    count = len(nodes)
    integers = {
        name: _numbers(fields, name, int, count)
        for name in ("split_feature", "decision_type", "left_child", "right_child")
    }
    threshold = _numbers(fields, "threshold", float, count)
    kind, feature = integers["decision_type"], integers["split_feature"]
    missing = kind >> _MISSING_SHIFT
    if (kind & _CATEGORICAL).any() or not np.isin(missing, (_MISSING_IS_NONE, _MISSING_IS_NAN)).all():
        raise ValueError("a split is categorical or takes zero as missing")
    if feature.min() < 0 or feature.max() >= features or np.isnan(threshold).any():
        raise ValueError("a split has no such feature or no threshold")
    left, right = integers["left_child"], integers["right_child"]
    _check_children(np.concatenate([left, right]), count)
    to_left = np.where(missing == _MISSING_IS_NAN, (kind & _DEFAULT_LEFT) > 0, threshold >= 0.0)
    nodes["threshold"], nodes["feature"] = _floor32(threshold), feature
    nodes["left"], nodes["right"], nodes["missing"] = left, right, np.where(to_left, left, right)
    nodes["rows"] = _numbers(fields, "internal_count", int, count)


def _check_children(children: NDArray[np.int64], count: int) -> None:
    """Every node but the root and every leaf is the child of one node, and of an earlier one."""
    if not np.array_equal(np.sort(children), np.delete(np.arange(-count - 1, count), count + 1)):
        raise ValueError("children do not make a tree")
    parents = np.tile(np.arange(count), 2)
    if (children[children >= 0] <= parents[children >= 0]).any():
        raise ValueError("a child stands before its parent")


def _floor32(threshold: Float64) -> Float32:
    """The largest float32 not above each threshold: x <= it exactly where a float32 x <= the threshold."""
    with np.errstate(over="ignore"):
        rounded = threshold.astype(np.float32)
    above = rounded.astype(np.float64) > threshold
    return np.where(above, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def _joined(features: tuple[str, ...], trees: list[_Tree]) -> Forest:
    """The trees one behind the other, children renumbered."""
    node_starts = np.cumsum([0, *(len(tree.nodes) for tree in trees)])
    leaf_starts = np.cumsum([0, *(len(tree.leaves) for tree in trees)])
    roots = np.zeros(len(trees), np.int32)
    nodes = np.zeros(node_starts[-1], NODE)  # joining arrays of records takes a hundred times as long
    for place, tree in enumerate(trees):
        node, leaf = node_starts[place], leaf_starts[place]
        roots[place] = node if len(tree.nodes) else ~leaf
        mine = nodes[node : node_starts[place + 1]]
        mine[:] = tree.nodes
        for side in ("left", "right", "missing"):
            child = tree.nodes[side]
            mine[side] = np.where(child >= 0, child + node, child - leaf)
    leaves = np.concatenate([np.zeros(0), *(tree.leaves for tree in trees)])
    leaf_rows = np.concatenate([np.zeros(0), *(tree.leaf_rows for tree in trees)])
    return Forest(features, nodes, leaves, leaf_rows, roots)
