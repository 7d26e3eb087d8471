"""The encoder on ONNX Runtime, for comparison: loads from bytes, never imports torch.

ONNX Runtime comes with the extra `compare` and is imported when an encoder is made.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Literal, get_args

import numpy as np

from recsys.errors import EXIT_UNAVAILABLE, RecsysError
from recsys.events import Float32
from recsys.text.runtime import files_digest
from recsys.text.tokenization import Tokenizer, TokenLimits

Precision = Literal["int8", "fp32"]

GRAPH_FILE = "encoder_onnx.bin"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "onnx.json"

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
SILENT = 4


class OnnxEncoder:
    """Text to unit vectors on ONNX Runtime; safe to call from several threads.

    Dynamic int8 measures the scale of the activations at every run, over all texts in it: in a batch, a
    text's embedding would depend on its batch mates. So one text is run at a time, at its own length, and
    its embedding is the same in whatever company. Batches would be faster: this is the price of dynamic
    scales.
    """

    def __init__(self, graph: bytes, tokenizer: Tokenizer, precision: Precision, *, threads: int = 2) -> None:
        """Open a graph.

        Args:
            graph: ONNX, weights inside. Inputs `input_ids` and `attention_mask` (B, T) int64, output
                `sentence_embedding` (B, dim), its rows of length 1.
            tokenizer: gives the ids.
            precision: of the graph's matrices.
            threads: texts run at a time, each on one core.

        Raises:
            RecsysError: `missing_extra` without ONNX Runtime; `encoder_invalid` for a graph that is
                damaged, has other inputs or outputs, or keeps weights elsewhere.
        """
        self._graph, self._tokenizer, self._threads = graph, tokenizer, threads
        self.precision = precision
        self._session = _open(graph)
        self.dim = _checked_dim(self._session)
        self.encoder_id = files_digest(self.to_files())

    def encode(self, texts: Sequence[str]) -> Float32:
        """(len(texts), dim) rows of length 1 in input order; zeros for a text without a word."""
        embeddings = np.zeros((len(texts), self.dim), np.float32)
        tokens = self._tokenizer.encode(texts)

        def fill(first: int) -> None:
            for row in range(first, len(tokens), self._threads):
                if tokens[row]:
                    embeddings[row] = self.embed(tokens[row])

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(fill, range(min(self._threads, len(tokens)))))
        return embeddings

    def embed(self, tokens: Sequence[int]) -> Float32:
        """(dim,) embedding of one text's token ids, one at least."""
        input_ids = np.array([tokens], np.int64)
        values = (input_ids, np.ones_like(input_ids))
        found: Float32 = self._session.run([OUTPUT], dict(zip(INPUTS, values, strict=True)))[0][0]
        return found

    def to_files(self) -> dict[str, bytes]:
        """Graph, tokenizer, and JSON with width, limits and precision."""
        settings = {"dim": self.dim, **asdict(self._tokenizer.limits), "precision": self.precision}
        return {
            GRAPH_FILE: self._graph,
            TOKENIZER_FILE: self._tokenizer.definition,
            CONFIG_FILE: json.dumps(settings, indent=1).encode(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, threads: int = 2) -> OnnxEncoder:
        """Rebuild what `to_files` wrote.

        Raises:
            RecsysError: a file is missing or damaged, or ONNX Runtime is not installed.
        """
        try:
            settings = json.loads(files[CONFIG_FILE])
            dim, precision = settings["dim"], settings["precision"]
            limits = TokenLimits(settings["max_chars"], settings["max_tokens"])
            graph, definition = files[GRAPH_FILE], files[TOKENIZER_FILE]
        except (KeyError, TypeError, ValueError) as error:
            raise RecsysError("encoder_invalid", f"the encoder's files are incomplete: {error}") from error
        if precision not in get_args(Precision):
            raise RecsysError("encoder_invalid", f"no such precision: {str(precision)[:40]!r}", CONFIG_FILE)
        encoder = cls(graph, Tokenizer(definition, limits), precision, threads=threads)
        if encoder.dim != dim:
            raise RecsysError("encoder_invalid", f"the graph gives {encoder.dim} numbers", CONFIG_FILE)
        return encoder


def optional(module: str) -> Any:
    """A module that the extra `compare` brings; raises RecsysError `missing_extra` (exit 69) without it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        what = f'module {error.name} is missing: pip install "recsys[compare]"'
        raise RecsysError("missing_extra", what, exit_code=EXIT_UNAVAILABLE) from error


def _open(graph: bytes) -> Any:
    """A session of one thread on the CPU. A folder that cannot be keeps the graph from naming files."""
    onnxruntime = optional("onnxruntime")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors share no narrower class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
        raise RecsysError(
            "encoder_invalid", f"ONNX Runtime refuses the graph: {reason}", GRAPH_FILE
        ) from error


def _checked_dim(session: Any) -> int:
    """Width of the embedding of a graph with our inputs and our output."""
    inputs = {each.name: (each.type, len(each.shape)) for each in session.get_inputs()}
    outputs = [each for each in session.get_outputs() if each.name == OUTPUT]
    if inputs != dict.fromkeys(INPUTS, ("tensor(int64)", 2)) or not outputs:
        raise RecsysError("encoder_invalid", "the graph is not that of a text encoder", GRAPH_FILE)
    if outputs[0].type != "tensor(float)" or not isinstance(outputs[0].shape[-1], int):
        raise RecsysError("encoder_invalid", "the graph's output is not an embedding", GRAPH_FILE)
    return int(outputs[0].shape[-1])
