"""What speeds are told against: the teacher as people run it, sentence-transformers in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from recsys.events import Float32
from recsys.text.teacher import Teacher, find_folder

REFERENCE = "sentence-transformers fp32"
BATCH_SIZE = 32


class SentenceTransformersEncoder:
    """The teacher's files behind `SentenceTransformer.encode`, batches of 32, as long texts as ours reads."""

    def __init__(self, teacher: Teacher, *, threads: int = 2) -> None:
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self._model = SentenceTransformer(str(find_folder(teacher.name)), device="cpu")
        self._model.max_seq_length = teacher.tokenizer.limits.max_tokens
        self.encoder_id = teacher.sha256
        self.dim = teacher.transformer.dim

    def encode(self, texts: Sequence[str]) -> Float32:
        """(len(texts), dim) rows of length 1."""
        found = self._model.encode(
            list(texts), batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(found, np.float32)
