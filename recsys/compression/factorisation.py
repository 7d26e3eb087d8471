"""A thinner word table: rows of low rank times one map, the best in squares weighted by use.

With token counts c, the rows of diag(sqrt(c)) E are approximated by their leading singular vectors
(Eckart & Young 1936), so that frequent words keep more of themselves than rare ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from recsys.compression.variant import Variant
from recsys.compression.vocabulary import token_counts
from recsys.text.transformer import TextTransformer


def factorise_words(variant: Variant, texts: Sequence[str], *, rank: int) -> Variant:
    """Replace the word table (vocabulary, dim) by (vocabulary, rank) and a (rank, dim) map.

    Args:
        variant: what to factorise; its word table is whole.
        texts: the corpus whose token counts weigh the rows; a token that it lacks counts once.
        rank: width of the thin table, below the embedding's.

    Raises:
        ValueError: `rank` out of range, or a table that is factorised already.
    """
    shape = variant.transformer.architecture
    if shape.word_rank:
        raise ValueError("the word table is factorised already")
    if not 1 <= rank < shape.dim:
        raise ValueError(f"rank must lie in 1..{shape.dim - 1}, not {rank}")
    weight = np.sqrt(np.maximum(token_counts(variant, texts), 1)).astype(np.float32)[:, None]
    table = variant.transformer.words.weight.detach().numpy()
    _, _, directions = np.linalg.svd(weight * table, full_matrices=False)
    basis = directions[:rank]  # (rank, dim), rows orthonormal
    thin = TextTransformer(replace(shape, word_rank=rank))
    weights = variant.transformer.state_dict() | {
        "words.weight": torch.from_numpy(table @ basis.T),
        "word_map.weight": torch.from_numpy(np.ascontiguousarray(basis.T)),
    }
    thin.load_state_dict(weights)
    return variant.then(f"word-rank-{rank}", thin.eval())
