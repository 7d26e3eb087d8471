"""The receipt of a text encoder: what it is, what it costs, and how near it stays to the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from recsys.compression.memory import peak_memory
from recsys.compression.speed import Timing
from recsys.compression.variant import Variant
from recsys.events import Float32
from recsys.text.static_runtime import TABLE_FILE
from recsys.text.student import neighbour_overlap
from recsys.text.transformer import Architecture

LONG_TOKENS = 60


@dataclass(frozen=True)
class Closeness:
    """How near embeddings stay to the teacher's: mean cosine, and shared share of the ten nearest texts."""

    cosine: float
    neighbour_overlap: float


@dataclass(frozen=True)
class Receipt:
    """What an encoder is and costs, apart from what it does to recommendations.

    Attributes:
        parameters: weights of the network, or numbers of the table.
        operations: of one text of 60 tokens; see `operations`.
        bytes: of all its files.
        peak_memory_bytes: see `peak_memory`.
        titles, long_texts: its seconds on titles and on texts of 60 tokens.
        reference_titles, reference_long_texts: those of the reference in the same rounds.
        closeness: to the teacher, on texts held out.
    """

    parameters: int
    operations: int
    bytes: int
    peak_memory_bytes: int
    titles: Timing
    long_texts: Timing
    reference_titles: Timing
    reference_long_texts: Timing
    closeness: Closeness


def receipt_of(
    files: Mapping[str, bytes],
    variant: Variant | None,
    timings: tuple[Timing, Timing],
    reference: tuple[Timing, Timing],
    embeddings: tuple[Float32, Float32],
    texts: Sequence[str],
) -> Receipt:
    """Put it together.

    Args:
        files: the encoder's.
        variant: its network; a table has none and takes no operations.
        timings: of titles and of texts of 60 tokens.
        reference: likewise, in the same rounds.
        embeddings: its own and the teacher's of the texts held out, (texts, dim) each.
        texts: encoded for the peak of memory.
    """
    network = variant.transformer if variant else None
    return Receipt(
        network.parameter_count if network else table_numbers(files),
        operations(network.architecture, LONG_TOKENS) if network else 0,
        sum(map(len, files.values())),
        peak_memory(files, texts),
        *timings,
        *reference,
        closeness(*embeddings),
    )


def table_numbers(files: Mapping[str, bytes]) -> int:
    """Numbers in the word table of an encoder without a network."""
    return int(safetensors.numpy.load(files[TABLE_FILE])["table"].size)


def operations(architecture: Architecture, tokens: int) -> int:
    """Floating-point operations of the matrix products for one text of so many tokens, two a multiply-add.

    The word table is looked up and counts nothing; norms, softmax and activations are left out.
    """
    dim = architecture.dim
    of_token = 2 * architecture.word_rank * dim
    for number in architecture.running:
        layer = architecture.layers[number]
        attended = layer.heads * architecture.head_dim
        of_token += 8 * dim * attended + 4 * tokens * attended + 4 * dim * layer.feed_forward
    return tokens * of_token + 4 * dim * architecture.projected


def closeness(found: Float32, reference: Float32) -> Closeness:
    """Compare embeddings (texts, dim) of the same texts, rows unit; rows that are zero in both are left out.

    NaN where nothing is left; the overlap is NaN for ten texts or fewer.
    """
    some = found.any(axis=1) | reference.any(axis=1)
    found, reference = found[some], reference[some]
    if not len(found):
        return Closeness(float("nan"), float("nan"))
    cosine = float(np.einsum("td,td->t", found, reference).mean())
    return Closeness(cosine, neighbour_overlap(found, reference))
