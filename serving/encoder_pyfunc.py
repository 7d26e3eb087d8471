"""A registered text encoder behind MLflow's own tools; it imports neither MLflow nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.bundle import read_bundle
from recsys.events import Float32
from recsys.text.loading import load_encoder
from recsys.text.runtime import Encoder

if TYPE_CHECKING:
    import pandas as pd


class EncoderModel:
    """Embeds a table of one text a row."""

    def __init__(self, encoder: Encoder) -> None:
        """Take the encoder of a verified bundle."""
        self._encoder = encoder

    def predict(self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None) -> Float32:
        """(rows, dim) embeddings of the column `text`, of length 1, or zeros for a text without a word.

        Raises:
            ValueError: the column is missing, or has a null.
        """
        if "text" not in frame:
            raise ValueError("missing column ['text']: give one text a row")
        if frame["text"].isna().any():
            raise ValueError("null values in ['text']")
        return self._encoder.encode(frame["text"].astype(str).tolist())


def _load_pyfunc(path: str) -> EncoderModel:
    """Load the bundle folder at `path`; MLflow calls this by name. Raises what `read_bundle` raises."""
    return EncoderModel(load_encoder(read_bundle(Path(path)).files))
