"""What lists do beyond accuracy: how much of the catalogue they reach, and how little known it is."""

from __future__ import annotations

import numpy as np

from recsys.events import Float32, Float64, Int32, Int64


def coverage(ranked: Int32, items: int, k: int) -> float:
    """Share of the catalogue that stands in at least one user's first k places.

    The catalogue coverage of Ge, Delgado-Battenfeld & Jannach 2010.

    Args:
        ranked: (users, K) item_index, best first, -1 where the list has ended.
        items: size of the catalogue.
        k: list length to look at.

    Returns:
        0 to 1; 0 for no lists, NaN for an empty catalogue.

    Raises:
        ValueError: a list names an item that the catalogue does not hold.
    """
    top = _within(ranked[:, :k], items)
    return len(np.unique(top[top >= 0])) / items if items else float("nan")


def novelty(ranked: Int32, popularity: Int64, k: int) -> Float64:
    """Mean surprise of each user's first k items, in bits.

    The surprise of an item is its self-information -log2 p (Zhou et al. 2010, "Solving the apparent
    diversity-accuracy dilemma of recommender systems"), where p is its share of the training events with
    one event added to every item (Laplace), so that an item without any has a finite surprise.

    Args:
        ranked: (users, K) item_index, best first, -1 where the list has ended.
        popularity: (items,) number of training events of every item.
        k: list length to look at.

    Returns:
        (users,) bits, NaN for an empty list. Where all items are equally popular it is log2(items).

    Raises:
        ValueError: a list names an item that the catalogue does not hold.
    """
    top = _within(ranked[:, :k], len(popularity))
    smoothed = np.asarray(popularity, np.float64) + 1.0
    surprise = np.append(np.log2(smoothed.sum()) - np.log2(smoothed), 0.0)  # the last one is for -1
    named = (top >= 0).sum(axis=1)
    mean = np.full(len(top), np.nan)
    np.divide(surprise[top].sum(axis=1), named, out=mean, where=named > 0)
    return mean


def intra_list_similarity(ranked: Int32, embeddings: Float32, k: int) -> Float64:
    """Mean cosine over all pairs of each user's first k items (Ziegler et al. 2005, divided by the pairs).

    Args:
        ranked: (users, K) item_index, best first, -1 where the list has ended.
        embeddings: (items, dim) of length 1; zeros where there is none, which is like nothing.
        k: list length to look at.

    Returns:
        (users,) -1 to 1, NaN for a list of fewer than two items.

    Raises:
        ValueError: a list names an item that the catalogue does not hold.
    """
    top = _within(ranked[:, :k], len(embeddings))
    sums = np.zeros((len(top), embeddings.shape[1]))
    squares = np.zeros(len(top))
    for column in top.T:
        vectors = np.where(column[:, None] >= 0, embeddings[column], 0.0)
        sums += vectors
        squares += np.einsum("ij,ij->i", vectors, vectors)
    named = (top >= 0).sum(axis=1)
    pairs = named * (named - 1)
    total = np.einsum("ij,ij->i", sums, sums) - squares
    return np.divide(total, pairs, out=np.full(len(top), np.nan), where=pairs > 0)


def category_entropy(ranked: Int32, category: Int32, k: int) -> Float64:
    """Shannon entropy in bits of the categories of each user's first k items.

    Args:
        ranked: (users, K) item_index, best first, -1 where the list has ended.
        category: (items,) codes, -1 where unknown; items without a category are left out.
        k: list length to look at.

    Returns:
        (users,) 0 for one category, log2(k) at most; NaN where no item has a category.

    Raises:
        ValueError: a list names an item that the catalogue does not hold.
    """
    top = _within(ranked[:, :k], len(category))
    codes = np.where(top >= 0, category[top], -1) if len(category) else top
    total = (codes >= 0).sum(axis=1)
    same = (codes[:, :, None] == codes[:, None, :]).sum(axis=2)
    share = np.divide(same, total[:, None], out=np.ones(same.shape), where=total[:, None] > 0)
    surprise = np.where(codes >= 0, -np.log2(share), 0.0).sum(axis=1)
    return np.divide(surprise, total, out=np.full(len(top), np.nan), where=total > 0)


def _within(top: Int32, items: int) -> Int32:
    if top.max(initial=-1) >= items or top.min(initial=-1) < -1:
        raise ValueError(f"a list names an item outside the catalogue of {items} items")
    return top
