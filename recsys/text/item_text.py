"""What the encoder reads of an item: its title, then its description, on lines of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.dataset import Catalogue

MAX_CHARS = 400


def item_text(title: str, description: str = "", *, max_chars: int = MAX_CHARS) -> str:
    """The text of one item, at most `max_chars` long; "" where both parts are blank.

    The first line is the title (white space within it becomes a space), the rest is the description.
    A description that only repeats the title is left out.
    """
    title, description = clean(title, max_chars), clean(description, max_chars)
    if description == title:
        description = ""
    return f"{title}\n{description}".strip()[:max_chars].rstrip()


def catalogue_texts(catalogue: Catalogue, *, max_chars: int = MAX_CHARS) -> list[str]:
    """The text of every item, in row order."""
    pairs = zip(catalogue.title, catalogue.description, strict=True)
    return [item_text(title, description, max_chars=max_chars) for title, description in pairs]


def clean(text: str, max_chars: int) -> str:
    """One line of valid Unicode from the first `max_chars` characters; lone surrogates become "?"."""
    return " ".join(text[:max_chars].encode("utf-8", "replace").decode("utf-8").split())


def evenly(texts: Sequence[str], count: int) -> list[str]:
    """At most `count` of the texts, at even steps."""
    rows = np.unique(np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(np.int64))
    return [texts[row] for row in rows]
