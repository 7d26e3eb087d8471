"""What lists do beyond accuracy: how much of the catalogue they reach, and how little known it is."""

from __future__ import annotations

import numpy as np

from recsys.events import Float64, Int32, Int64


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


def _within(top: Int32, items: int) -> Int32:
    if top.max(initial=-1) >= items or top.min(initial=-1) < -1:
        raise ValueError(f"a list names an item outside the catalogue of {items} items")
    return top
