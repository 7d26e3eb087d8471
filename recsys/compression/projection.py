"""Embeddings that pass through fewer numbers: an item needs only those stored, and the width stays.

The mean of the tokens is mapped to `dims` numbers and back, embedding = B'B mean / |B'B mean|, so that
nothing behind the encoder changes. B starts with the directions that keep most of the embeddings of a corpus,
which are the leading eigenvectors of their second moments (Eckart & Young 1936; not centred, because a cosine
is not). Its rows are in the order of what they keep, and training keeps them so: every prefix of B serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from recsys.compression.variant import Variant
from recsys.text.item_text import evenly
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import TextTransformer

BASIS_TEXTS = 2000


def project(variant: Variant, texts: Sequence[str], *, dims: int) -> Variant:
    """Let embeddings pass through `dims` numbers.

    Args:
        variant: what to project; it is not changed.
        texts: the corpus; 2,000 of them, evenly spread, decide the directions. Fewer than `dims` leave the
            last ones to chance.
        dims: numbers kept; all of the width change nothing.

    Raises:
        ValueError: `dims` out of range, a projection that is there already, or no text has a token.
    """
    transformer = variant.transformer
    shape = transformer.architecture
    if shape.projected:
        raise ValueError("embeddings are projected already: truncated() keeps fewer of their numbers")
    if not 1 <= dims <= shape.dim:
        raise ValueError(f"dims must lie in 1..{shape.dim}, not {dims}")
    embeddings = TorchEncoder(transformer, variant.tokenizer).encode(evenly(texts, BASIS_TEXTS))
    if not embeddings.any():
        raise ValueError("directions are measured on texts, and none has a token")
    _, directions = np.linalg.eigh(embeddings.T.astype(np.float64) @ embeddings)  # ascending
    basis = np.ascontiguousarray(directions[:, ::-1][:, :dims].T, dtype=np.float32)
    return _through(variant, torch.from_numpy(basis))


def truncated(variant: Variant, dims: int) -> Variant:
    """Keep the first `dims` numbers of a projection, without training.

    A projection that was trained has learned to serve at its halves, quarters and so on.

    Raises:
        ValueError: there is no projection, or `dims` is out of its range.
    """
    projected = variant.transformer.architecture.projected
    if not projected:
        raise ValueError("nothing to truncate: embeddings are not projected")
    if not 1 <= dims <= projected:
        raise ValueError(f"dims must lie in 1..{projected}, not {dims}")
    return _through(variant, variant.transformer.projection.weight.detach()[:dims])


def _through(variant: Variant, basis: torch.Tensor) -> Variant:
    """The variant with the projection `basis` (dims, dim) in place of any it had."""
    source = variant.transformer
    projected = TextTransformer(replace(source.architecture, projected=len(basis)))
    projected.load_state_dict(source.state_dict() | {"projection.weight": basis})
    return variant.then(f"dims-{len(basis)}", projected.eval())
