"""Decision trees as masks over their leaves, and the kernel that adds them up without walking a tree.

A decision that sends a row to the right rules out the leaves on its left, and the row's leaf is the first
that no decision rules out (Lucchese et al. 2015, "QuickScorer"). So a decision is one AND, for many rows at a
time. Here they go tree by tree, and those on which all rows of a chunk agree, as on what is known of their
common user, are made once for all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recsys.events import Bool, Float32, Float64, Int32, Int64

UInt32 = NDArray[np.uint32]

_WORD = 32
CHUNK = 256
"""Rows that go together at most: as many as stay near the processor."""
_TOGETHER = 4
_LANES = 8
_ALL = np.uint32(0xFFFFFFFF)
_FIRST, _LAST = np.int32(-(2**31)), np.int32(2**31 - 1)
_BITS_OF_INFINITY = np.int32(0x7F800000)


class LeafMasks(NamedTuple):
    """Trees word by word: a word stands for up to 32 leaves of one tree, its highest bit for the first.

    A tree of more leaves has several words, the one of its first leaves last.

    Attributes:
        threshold, column, mask: (decisions,) those of the first word, then those of the second, and so on:
            where the value in the column is not up to the threshold, only the leaves of the mask are left.
            Thresholds, and values beside them, are whole numbers in the order of the floats.
        starts: (words + 1,) first decision of each word.
        ends_tree: (words,) whether the tree has no further word.
        values: (words * 32,) leaf values by bit, the lowest first.
        feature: (columns,) where the column stands in the matrix; one whose NaN go both ways is there twice.
        nan_left: (columns,) whether NaN goes left.
    """

    threshold: Int32
    column: UInt32
    mask: UInt32
    starts: Int64
    ends_tree: Bool
    values: Float64
    feature: Int64
    nan_left: Bool

    @classmethod
    def of(cls, nodes: NDArray[np.void], leaves: Float64, roots: Int32) -> LeafMasks:
        """The masks of the trees of a `forest.Forest`, in which no child stands before its parent."""
        sizes = np.ones(len(roots), np.int64)
        decided = roots >= 0
        sizes[decided] += np.diff(np.append(roots[decided], len(nodes)))
        words = -(-sizes // _WORD)
        last_word = np.cumsum(words) - 1
        left, right = nodes["left"].copy(), nodes["right"].copy()
        begin, end, leaf_place = _leaf_places(left, right, roots, len(leaves))
        node, nth = _words_of(begin, end)
        tree_of_node = np.repeat(np.arange(len(roots)), sizes - 1)
        word = last_word[tree_of_node[node]] - nth
        order = np.argsort(word, kind="stable")
        node = node[order]
        nan_left = nodes["missing"] == nodes["left"]
        kinds, column = np.unique(nodes["feature"] * np.int64(2) + nan_left, return_inverse=True)
        ends_tree = np.zeros(words.sum(), np.bool_)
        ends_tree[last_word] = True
        values = np.zeros(len(ends_tree) * _WORD)
        word_of_leaf = np.repeat(last_word, sizes) - leaf_place // _WORD
        values[word_of_leaf * _WORD + _WORD - 1 - leaf_place % _WORD] = leaves
        return cls(
            threshold=_key((nodes["threshold"][node] + np.float32(0.0)).view(np.int32)),
            column=column[node].astype(np.uint32),
            mask=_masks(begin[node] - _WORD * nth[order], end[node] - _WORD * nth[order]),
            starts=np.searchsorted(word[order], np.arange(len(ends_tree) + 1)).astype(np.int64),
            ends_tree=ends_tree,
            values=values,
            feature=kinds >> 1,
            nan_left=(kinds & 1).astype(np.bool_),
        )


@njit(cache=True, nogil=True)
def _leaf_places(left: Int32, right: Int32, roots: Int32, leaves: int) -> tuple[Int64, Int64, Int64]:
    """The leaves on the left of each node, first and end, and each leaf's place, counted in its tree."""
    nodes = len(left)
    under, begin, end = np.ones(nodes, np.int64), np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    place = np.zeros(leaves, np.int64)
    for node in range(nodes - 1, -1, -1):
        on_left = under[left[node]] if left[node] >= 0 else 1
        end[node] = on_left
        under[node] = on_left + (under[right[node]] if right[node] >= 0 else 1)
    for node in range(nodes):
        end[node] += begin[node]
        for child, first in ((left[node], begin[node]), (right[node], end[node])):
            if child >= 0:
                begin[child] = first
            else:
                place[~child] = first
    return begin, end, place


def _words_of(begin: Int64, end: Int64) -> tuple[Int64, Int64]:
    """Nodes once for each word that they rule out leaves of, and the number of that word in the tree."""
    first = begin // _WORD
    count = (end - 1) // _WORD - first + 1
    node = np.repeat(np.arange(len(begin)), count)
    return node, first[node] + np.arange(len(node)) - np.repeat(np.cumsum(count) - count, count)


def _masks(begin: Int64, end: Int64) -> UInt32:
    """Words with all bits but begin..end-1, as far as these are in the word, counted from the highest."""
    begin, end = np.maximum(begin, 0), np.minimum(end, _WORD)
    return (~(((1 << (end - begin)) - 1) << (_WORD - end))).astype(np.uint32)


@njit(cache=True, nogil=True)
def add_up(masks: LeafMasks, columns: Float32, out: Float64) -> None:
    """Add the leaf values of at most `CHUNK` rows, given as (features, rows), to `out` (rows,)."""
    kinds, rows = len(masks.feature), len(out)
    padded = (rows + _LANES - 1) // _LANES * _LANES
    block = np.zeros((kinds, padded), np.int32)
    lowest, highest = np.empty(kinds, np.int32), np.empty(kinds, np.int32)
    for kind in range(kinds):
        bits = columns[masks.feature[kind]].view(np.int32)
        nan = _FIRST if masks.nan_left[kind] else _LAST
        lowest[kind], highest[kind] = _write_keys(bits, nan, block[kind])
    _add_words(masks, block, lowest, highest, out)


@njit(cache=True, nogil=True)
def _write_keys(bits: Int32, nan: np.int32, out: Int32) -> tuple[np.int32, np.int32]:
    """`_key` of each number, with `nan` for NaN; the lowest and the highest."""
    low, high = _LAST, _FIRST
    for row in range(len(bits)):
        key = _key(bits[row])
        key = nan if bits[row] & _LAST > _BITS_OF_INFINITY else key
        out[row] = key
        low, high = min(low, key), max(high, key)
    return low, high


@njit(cache=True, nogil=True)
def _add_words(masks: LeafMasks, block: Int32, lowest: Int32, highest: Int32, out: Float64) -> None:
    """Word after word; `found` is the value of the first leaf that is left in the words of a tree so far."""
    rows, most = len(out), np.max(np.diff(masks.starts)) + _TOGETHER
    left, found = np.empty(block.shape[1], np.uint32), np.zeros(rows, np.float64)
    at, above, mask = np.empty(most, np.uint32), np.empty(most, np.int32), np.empty(most, np.uint32)
    for word in range(len(masks.ends_tree)):
        count, common = _undecided(masks, word, (lowest, highest), (at, above, mask))
        for nth in range(count, count + _TOGETHER):
            at[nth], above[nth], mask[nth] = np.uint32(0), _LAST, _ALL
        left[:] = common
        for nth in range(0, count, _TOGETHER):
            a, b, c, d = nth, nth + 1, nth + 2, nth + 3
            _rule_out(
                (block[at[a]], block[at[b]], block[at[c]], block[at[d]]),
                (above[a], above[b], above[c], above[d]),
                (mask[a], mask[b], mask[c], mask[d]),
                left,
            )
        values = masks.values[word * _WORD : (word + 1) * _WORD]
        if not masks.ends_tree[word]:
            for row in range(rows):
                found[row] = values[_highest_bit(left[row])] if left[row] else found[row]
        elif word == 0 or masks.ends_tree[word - 1]:
            for row in range(rows):
                out[row] += values[_highest_bit(left[row])]
        else:
            for row in range(rows):
                out[row] += values[_highest_bit(left[row])] if left[row] else found[row]


@njit(cache=True, nogil=True, inline="always")
def _undecided(
    masks: LeafMasks, word: int, ranges: tuple[Int32, Int32], out: tuple[UInt32, Int32, UInt32]
) -> tuple[int, np.uint32]:
    """Write the decisions of a word on which rows differ; their number, and the leaves that all others leave.

    Without a branch: which decisions these are, no processor can guess.
    """
    lowest, highest = ranges
    at, above, mask = out
    count, common = 0, _ALL
    for nth in range(masks.starts[word], masks.starts[word + 1]):
        column, threshold, leaves = masks.column[nth], masks.threshold[nth], masks.mask[nth]
        is_right = threshold < lowest[column]
        common &= leaves if is_right else _ALL
        at[count], above[count], mask[count] = column, threshold, leaves
        count += int(threshold < highest[column]) & ~int(is_right)
    return count, common


@njit(cache=True, nogil=True)
def _rule_out(
    column: tuple[Int32, Int32, Int32, Int32],
    above: tuple[np.int32, np.int32, np.int32, np.int32],
    mask: tuple[np.uint32, np.uint32, np.uint32, np.uint32],
    left: UInt32,
) -> None:
    """`_TOGETHER` decisions for all rows."""
    column_a, column_b, column_c, column_d = column
    above_a, above_b, above_c, above_d = above
    mask_a, mask_b, mask_c, mask_d = mask
    for row in range(len(left)):
        a = _ALL if column_a[row] <= above_a else mask_a
        b = _ALL if column_b[row] <= above_b else mask_b
        c = _ALL if column_c[row] <= above_c else mask_c
        d = _ALL if column_d[row] <= above_d else mask_d
        left[row] &= a & b & c & d


@njit(cache=True, nogil=True, inline="always")
def _key(bits: np.int32) -> np.int32:
    """The bits of a float32 as a whole number that ascends as the float does."""
    return bits ^ (bits >> np.int32(31) & _LAST)


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def _highest_bit(word: np.uint32) -> np.uint64:
    """From the exponent of the word as a float; below 32 for 0 too."""
    return ((np.float64(word).view(np.uint64) >> np.uint64(52)) - np.uint64(1023)) & np.uint64(31)
