"""The far end of the ladder: no network, one vector a token, fitted to what the teacher gives the corpus.

A text's vector is the mean of its tokens' vectors. The table starts with the teacher's embedding of each
token alone; ridge regression towards that start then fits it to the teacher's embeddings of whole texts,
so that words which say little get short vectors. The strength of the ridge is chosen on texts held out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse

from recsys.compression.variant import Variant
from recsys.events import Float32, Int32
from recsys.text.static_runtime import StaticEncoder, token_matrix, token_rows
from recsys.text.tokenization import pad_batch

RIDGES = (0.3, 0.03, 0.003, 0.0003)
"""Relative to the mean diagonal of the normal matrix over the tokens that occur."""

HOLDOUT_SHARE = 0.1
ITERATIONS = 60
LEAST_PAIR_COUNT = 3
TOKENS_A_PASS = 1024


def static_table(
    variant: Variant, texts: Sequence[str], embeddings: Float32, *, pairs: int = 0, seed: int = 0
) -> StaticEncoder:
    """Fit the table.

    Args:
        variant: the model whose tokens start the table, and whose tokenizer it keeps.
        texts: the corpus.
        embeddings: (texts, dim) the teacher's, unit rows; zero rows teach nothing.
        pairs: neighbouring tokens that get a vector of their own at most; it starts at zero.
        seed: of the texts held out to choose the ridge.

    Raises:
        ValueError: `embeddings` has not one row a text.
    """
    if len(texts) != len(embeddings):
        raise ValueError(f"{len(embeddings)} embeddings for {len(texts)} texts")
    told = np.flatnonzero(embeddings.any(axis=1))
    known = [texts[int(row)] for row in told]
    chosen = frequent_pairs(variant, known, pairs)
    start = np.pad(token_embeddings(variant), ((0, len(chosen)), (0, 0)))
    shares, wanted = token_matrix(variant.tokenizer, known, chosen), embeddings[told]
    if not shares.nnz:
        return StaticEncoder.of(start, variant.tokenizer, chosen)
    held = np.random.default_rng(seed).random(len(told)) < HOLDOUT_SHARE
    ridge = max(RIDGES)
    if held.any() and not held.all():
        fitted = {each: ridge_towards(start, shares[~held], wanted[~held], each) for each in RIDGES}
        ridge = max(RIDGES, key=lambda each: _mean_cosine(shares[held] @ fitted[each], wanted[held]))
    return StaticEncoder.of(ridge_towards(start, shares, wanted, ridge), variant.tokenizer, chosen)


def frequent_pairs(variant: Variant, texts: Sequence[str], most: int) -> Int32:
    """(pairs, 2) the most frequent neighbours that occur three times, in ascending order of their tokens."""
    tokens, offsets = token_rows(variant.tokenizer, texts)
    text = np.repeat(np.arange(len(texts)), np.diff(offsets))
    within = text[:-1] == text[1:]
    codes = tokens[:-1][within] * variant.tokenizer.vocabulary + tokens[1:][within]
    found, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    kept = np.sort(found[order[counts[order] >= LEAST_PAIR_COUNT]])
    return np.stack(np.divmod(kept, variant.tokenizer.vocabulary), axis=1).astype(np.int32)


@torch.inference_mode()
def token_embeddings(variant: Variant) -> Float32:
    """(vocabulary, dim) the network's embedding of each token alone, without special tokens."""
    transformer = variant.transformer.eval()
    count = transformer.architecture.vocabulary
    rows = []
    for first in range(0, count, TOKENS_A_PASS):
        ids, mask = pad_batch([[token] for token in range(first, min(first + TOKENS_A_PASS, count))], 1)
        rows.append(transformer(torch.from_numpy(ids), torch.from_numpy(mask)).numpy())
    return np.concatenate(rows)


def ridge_towards(start: Float32, shares: sparse.csr_matrix, wanted: Float32, ridge: float) -> Float32:
    """The table W of least |shares W - wanted|^2 + r |W - start|^2, by conjugate gradients.

    r is `ridge` times the mean diagonal of shares' shares over the tokens that occur; a token that does not
    occur keeps its start. All columns are solved side by side (Hestenes & Stiefel 1952).
    """
    diagonal = np.asarray(shares.multiply(shares).sum(axis=0)).ravel()
    strength = np.float32(ridge * diagonal[diagonal > 0].mean())
    step = np.zeros_like(start)
    residual = np.asarray(shares.T @ (wanted - shares @ start), np.float32)
    direction = residual.copy()
    square = np.einsum("vd,vd->d", residual, residual)
    for _ in range(ITERATIONS):
        image = shares.T @ (shares @ direction) + strength * direction
        curvature = np.einsum("vd,vd->d", direction, image)
        length = np.divide(square, curvature, out=np.zeros_like(square), where=curvature > 0)
        step += length * direction
        residual -= length * image
        after = np.einsum("vd,vd->d", residual, residual)
        direction = (
            residual + np.divide(after, square, out=np.zeros_like(square), where=square > 0) * direction
        )
        square = after
    return start + step


def _mean_cosine(found: Float32, wanted: Float32) -> float:
    """Of rows; `wanted` is of unit rows."""
    norms = np.maximum(np.linalg.norm(found, axis=1), 1e-12)
    return float((np.einsum("td,td->t", found, wanted) / norms).mean())
