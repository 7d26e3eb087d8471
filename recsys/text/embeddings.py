"""The table of item embeddings: computed once, then only for texts it has not seen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from recsys import numeric_storage
from recsys.errors import RecsysError
from recsys.events import Float32
from recsys.numeric_storage import Storage, load_arrays
from recsys.pairs import DensePairs
from recsys.text.runtime import Encoder

EMBEDDINGS_FILE = "item_embeddings.safetensors"
DIGEST_BYTES = 16


@dataclass(frozen=True)
class ItemEmbeddings:
    """One embedding an item, row i for item_index i, with the digest of what it was made from.

    Attributes:
        matrix: (items, dim) rows of length 1, after rounding to int8 within a few thousandths, or zeros where
            an item has no text.
        digests: (items, 16) bytes, of the encoder and the item's text.
        encoded: how many texts the update that made this table had to encode.
    """

    matrix: Float32
    digests: NDArray[np.uint8]
    encoded: int = 0

    def __len__(self) -> int:
        return len(self.matrix)

    @classmethod
    def empty(cls) -> ItemEmbeddings:
        """The table before the first update: it knows nothing."""
        return cls(np.zeros((0, 0), np.float32), np.zeros((0, DIGEST_BYTES), np.uint8))

    def update(self, texts: Sequence[str], encoder: Encoder) -> ItemEmbeddings:
        """The table for these texts, row i for text i; the order and number may differ from before.

        Only texts that this table does not hold under the same encoder are encoded, each once.
        """
        digests = text_digests(texts, encoder.encoder_id)
        known = {digest.tobytes(): row for row, digest in enumerate(self.digests)}
        keys = [digest.tobytes() for digest in digests]
        fresh = {key: row for row, key in enumerate(keys) if key not in known}
        encoded = encoder.encode([texts[row] for row in fresh.values()])
        source = np.concatenate([self.matrix, encoded]) if len(known) else encoded
        place = known | {key: len(self.matrix) + row for row, key in enumerate(fresh)}
        rows = np.array([place[key] for key in keys], np.int64)
        return ItemEmbeddings(source[rows], digests, len(fresh))

    @property
    def pairs(self) -> DensePairs:
        """The same matrix as item-to-item scores (cosine)."""
        return DensePairs(self.matrix)

    def rounded(self, storage: Storage) -> ItemEmbeddings:
        """The table with numbers that `storage` can hold; `to_files` then writes so few bytes.

        What `update` encodes afterwards is not rounded.

        Raises:
            ValueError: what `numeric_storage.rounded` refuses.
        """
        return replace(self, matrix=numeric_storage.rounded(self.matrix, storage))

    def to_files(self) -> dict[str, bytes]:
        """Matrix and digests in one safetensors file; `encoded` is not kept."""
        arrays = numeric_storage.to_arrays(self.matrix, "matrix")
        return {EMBEDDINGS_FILE: save({**arrays, "digests": np.ascontiguousarray(self.digests)})}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> ItemEmbeddings:
        """Read what `to_files` wrote, of any kind.

        Raises:
            RecsysError: the file is missing or damaged, or its arrays contradict each other.
        """
        arrays = load_arrays(files, EMBEDDINGS_FILE, "embeddings_invalid")
        matrix = numeric_storage.from_arrays(arrays, "matrix")
        digests = arrays.get("digests", np.zeros(0, np.uint8))
        if matrix.ndim != 2 or digests.shape != (len(matrix), DIGEST_BYTES):
            raise RecsysError("embeddings_invalid", "its arrays contradict each other", EMBEDDINGS_FILE)
        return cls(matrix, digests)


def text_digests(texts: Sequence[str], encoder_id: str) -> NDArray[np.uint8]:
    """(len(texts), 16) BLAKE2b digests of encoder and text; the same on every machine and run."""
    key = hashlib.sha256(encoder_id.encode()).digest()
    digests = [
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, key=key).digest()
        for text in texts
    ]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(texts), DIGEST_BYTES)
