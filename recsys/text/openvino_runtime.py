"""The encoder on OpenVINO: loads from bytes, never imports torch."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import openvino
import openvino.properties.hint as hints
from openvino import properties

from recsys.errors import RecsysError
from recsys.events import Float32
from recsys.text.runtime import files_digest, plan_batches
from recsys.text.sparse_storage import expand, squeeze
from recsys.text.tokenization import Tokenizer, TokenLimits

Precision = Literal["int8", "fp32", "bf16"]

GRAPH_FILE = "encoder.xml"
WEIGHTS_FILE = "encoder.bin"
SPARSE_WEIGHTS_FILE = "encoder_sparse.bin"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "encoder.json"


@dataclass(frozen=True)
class EncoderConfig:
    """What a saved encoder needs beside its graph.

    Attributes:
        dim: width of an embedding.
        max_chars: characters read of a text.
        max_tokens: tokens read of a text.
        precision: "int8" (quantised graph, the rest in fp32), "fp32" or "bf16" (fp32 graph, run in bf16).
    """

    dim: int
    max_chars: int
    max_tokens: int
    precision: Precision


class OpenVinoEncoder:
    """Text to unit vectors on OpenVINO; safe to call from several threads, one call at a time runs."""

    def __init__(
        self,
        graph: bytes,
        weights: bytes,
        tokenizer: Tokenizer,
        config: EncoderConfig,
        *,
        threads: int = 2,
        sparse: bool = False,
    ) -> None:
        """Compile a graph.

        Args:
            graph: OpenVINO IR, the XML. Inputs `input_ids` and `attention_mask` (B, T), output (B, dim).
            weights: OpenVINO IR, the binary.
            tokenizer: gives the ids; its limits are those of `config`.
            config: sizes and precision.
            threads: cores used.
            sparse: `to_files` stores the weights without their zeros. Nothing else depends on it.

        Raises:
            RecsysError: the graph is damaged.
        """
        self._graph, self._weights, self._tokenizer, self.config = graph, weights, tokenizer, config
        self._sparse = sparse
        try:
            core = openvino.Core()
            model = core.read_model(model=graph, weights=openvino.Tensor(np.frombuffer(weights, np.uint8)))
            compiled = core.compile_model(model, "CPU", compile_options(config.precision, threads))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RecsysError(
                "encoder_invalid", f"OpenVINO refuses the graph: {reason}", GRAPH_FILE
            ) from error
        self._queue = openvino.AsyncInferQueue(compiled, threads)
        self._lock = threading.Lock()
        self.encoder_id = files_digest(self._files())

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.config.dim

    def encode(self, texts: Sequence[str]) -> Float32:
        """(len(texts), dim) rows of length 1 in input order; zeros for a text without a word."""
        embeddings = np.zeros((len(texts), self.dim), np.float32)
        batches = plan_batches(self._tokenizer.encode(texts))

        def keep(request: openvino.InferRequest, rows: np.ndarray) -> None:
            embeddings[rows] = request.get_output_tensor(0).data

        with self._lock:
            self._queue.set_callback(keep)
            try:
                for rows, input_ids, attention_mask in batches:
                    self._queue.start_async({0: input_ids, 1: attention_mask}, rows)
            finally:  # a signal may end the loop: nothing must run on after it
                self._queue.wait_all()
        return embeddings

    def to_files(self) -> dict[str, bytes]:
        """Graph, weights (dense or sparse), tokenizer and configuration."""
        files = self._files()
        if self._sparse:
            width = 1 if self.config.precision == "int8" else 4
            files[SPARSE_WEIGHTS_FILE] = squeeze(files.pop(WEIGHTS_FILE), width)
        return files

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, threads: int = 2) -> OpenVinoEncoder:
        """Rebuild what `to_files` wrote.

        Raises:
            RecsysError: a file is missing or damaged.
        """
        sparse = SPARSE_WEIGHTS_FILE in files
        try:
            config = EncoderConfig(**json.loads(files[CONFIG_FILE]))
            definition, graph = files[TOKENIZER_FILE], files[GRAPH_FILE]
            weights = expand(files[SPARSE_WEIGHTS_FILE]) if sparse else files[WEIGHTS_FILE]
        except (KeyError, TypeError, ValueError) as error:
            raise RecsysError("encoder_invalid", f"the encoder's files are incomplete: {error}") from error
        tokenizer = Tokenizer(definition, TokenLimits(config.max_chars, config.max_tokens))
        return cls(graph, weights, tokenizer, config, threads=threads, sparse=sparse)

    def _files(self) -> dict[str, bytes]:
        """With dense weights: how they are stored does not decide the embeddings."""
        return {
            GRAPH_FILE: self._graph,
            WEIGHTS_FILE: self._weights,
            TOKENIZER_FILE: self._tokenizer.definition,
            CONFIG_FILE: json.dumps(asdict(self.config), indent=1).encode(),
        }


def compile_options(precision: Precision, threads: int) -> dict[str, object]:
    """One stream a thread: two small batches side by side beat one batch on two threads."""
    return {
        hints.inference_precision: openvino.Type.bf16 if precision == "bf16" else openvino.Type.f32,
        properties.inference_num_threads: threads,
        properties.num_streams: threads,
        hints.enable_cpu_pinning: False,
    }
