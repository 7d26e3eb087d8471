"""The encoder that may stop early: the network in two parts on OpenVINO; from bytes, never imports torch.

The first part gives, beside the tokens' states, an embedding and an estimate of its cosine to the one of the
whole network. A text whose estimate reaches the threshold keeps that embedding, the others go on through
the rest. Whether a text goes on depends on that text alone.
"""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
import openvino
from numpy.typing import NDArray

from recsys.errors import RecsysError
from recsys.events import Float32, Int64
from recsys.text.openvino_runtime import Precision, compile_options
from recsys.text.runtime import Batch, files_digest, plan_batches
from recsys.text.tokenization import Tokenizer, TokenLimits

FIRST_GRAPH, FIRST_WEIGHTS = "exit_first.xml", "exit_first.bin"
REST_GRAPH, REST_WEIGHTS = "exit_rest.xml", "exit_rest.bin"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "exit.json"

NEVER = float(np.finfo(np.float32).max)
"""The threshold at which no text leaves early."""

ALWAYS = -NEVER
"""The threshold at which every text does."""

ROUND_BATCHES = 16
"""Batches of the first part whose states are held until the rest has read them: 50 MB at width 384."""


@dataclass(frozen=True)
class ExitConfig:
    """What a saved encoder with an early exit needs beside its graphs.

    Attributes:
        dim: width of an embedding.
        layer: layers in the first part.
        threshold: least estimated cosine of a text that leaves early.
        max_chars: characters read of a text.
        max_tokens: tokens read of a text.
        precision: of both graphs, as in `openvino_runtime`.
    """

    dim: int
    layer: int
    threshold: float
    max_chars: int
    max_tokens: int
    precision: Precision

    def __post_init__(self) -> None:
        """Refuse what no encoder has; raises ValueError."""
        sizes = (self.dim, self.layer, self.max_chars, self.max_tokens)
        if not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"sizes must be whole numbers above 0, not {sizes}")
        if not math.isfinite(self.threshold) or self.precision not in get_args(Precision):
            raise ValueError(f"threshold {self.threshold} or precision {self.precision}")


class ExitEncoder:
    """Text to unit vectors, easy texts by part of the network; safe to call from several threads."""

    def __init__(
        self,
        first: tuple[bytes, bytes],
        rest: tuple[bytes, bytes],
        tokenizer: Tokenizer,
        config: ExitConfig,
        *,
        threads: int = 2,
    ) -> None:
        """Compile both parts.

        Args:
            first: OpenVINO IR, graph and weights. Inputs `input_ids` and `attention_mask` (B, T); outputs
                the tokens' states (B, T, dim), the early embedding (B, dim) and the estimate (B, 1).
            rest: likewise. Inputs are those states and `attention_mask`; output (B, dim).
            tokenizer: gives the ids; its limits are those of `config`.
            config: sizes, threshold and precision.
            threads: cores used.

        Raises:
            RecsysError: a graph is damaged, or is not such a graph.
        """
        self._parts, self._tokenizer, self.config = (first, rest), tokenizer, config
        self._first = _Part(
            first, config, threads, FIRST_GRAPH, ranks=(2, 2), widths=(config.dim, config.dim, 1)
        )
        self._rest = _Part(rest, config, threads, REST_GRAPH, ranks=(3, 2), widths=(config.dim,))
        self._lock = threading.Lock()
        self.encoder_id = files_digest(self.to_files())

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.config.dim

    def with_threshold(self, threshold: float) -> ExitEncoder:
        """An encoder of the same compiled parts with another threshold; `NEVER` and `ALWAYS` are the ends.

        Raises:
            ValueError: it is not a finite number.
        """
        other = copy.copy(self)
        other.config = replace(self.config, threshold=threshold)
        other.encoder_id = files_digest(other.to_files())
        return other

    def encode(self, texts: Sequence[str]) -> Float32:
        """(len(texts), dim) rows of length 1 in input order; zeros for a text without a word.

        Alone or in any batch a text gets the same, in bf16 up to its rounding, as everywhere in bf16.
        """
        embeddings = np.zeros((len(texts), self.dim), np.float32)
        tokens = self._tokenizer.encode(texts)
        batches = plan_batches(tokens)
        with self._lock:
            for start in range(0, len(batches), ROUND_BATCHES):
                states = self._run_first(batches[start : start + ROUND_BATCHES], embeddings)
                if states:
                    self._run_rest(states, tokens, embeddings)
        return embeddings

    def estimates(self, texts: Sequence[str]) -> Float32:
        """(len(texts),) estimated cosine of the early embedding to the full one; NaN without a word."""
        found = np.full(len(texts), np.nan, np.float32)

        def keep(rows: Int64, outputs: list[Float32]) -> None:
            found[rows] = outputs[2][:, 0]

        with self._lock:
            self._first.run(plan_batches(self._tokenizer.encode(texts)), keep)
        return found

    def leaving(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """(len(texts),) whether each leaves early; one without a word does not."""
        return self.estimates(texts) >= np.float32(self.config.threshold)

    def exit_share(self, texts: Sequence[str]) -> float:
        """Share of the texts with a word that leave early; NaN where there is none."""
        estimates = self.estimates(texts)
        told = ~np.isnan(estimates)
        left = estimates[told] >= np.float32(self.config.threshold)
        return float(left.mean()) if len(left) else math.nan

    def _run_first(self, batches: Sequence[Batch], embeddings: Float32) -> dict[int, Float32]:
        """Writes the embeddings of texts that leave; gives the states (T, dim) of the others, by row."""
        states: dict[int, Float32] = {}

        def keep(rows: Int64, outputs: list[Float32]) -> None:
            hidden, early, estimate = outputs
            leaves = estimate[:, 0] >= np.float32(self.config.threshold)
            embeddings[rows[leaves]] = early[leaves]
            states.update(zip(rows[~leaves].tolist(), hidden[~leaves], strict=True))

        self._first.run(batches, keep)
        return states

    def _run_rest(
        self, states: Mapping[int, Float32], tokens: Sequence[Sequence[int]], embeddings: Float32
    ) -> None:
        """Batches anew what goes on, by the same padded length as before."""
        staying = np.array(sorted(states), np.int64)

        def keep(rows: Int64, outputs: list[Float32]) -> None:
            embeddings[rows] = outputs[0]

        planned = plan_batches([tokens[row] for row in staying])
        batches = ((staying[chosen], mask) for chosen, _, mask in planned)
        self._rest.run(
            ((rows, np.stack([states[row] for row in rows]), mask) for rows, mask in batches), keep
        )

    def to_files(self) -> dict[str, bytes]:
        """Both graphs with their weights, tokenizer and configuration."""
        (first_graph, first_weights), (rest_graph, rest_weights) = self._parts
        return {
            FIRST_GRAPH: first_graph,
            FIRST_WEIGHTS: first_weights,
            REST_GRAPH: rest_graph,
            REST_WEIGHTS: rest_weights,
            TOKENIZER_FILE: self._tokenizer.definition,
            CONFIG_FILE: json.dumps(asdict(self.config), indent=1).encode(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, threads: int = 2) -> ExitEncoder:
        """Rebuild what `to_files` wrote.

        Raises:
            RecsysError: a file is missing or damaged.
        """
        try:
            config = ExitConfig(**json.loads(files[CONFIG_FILE]))
            first = files[FIRST_GRAPH], files[FIRST_WEIGHTS]
            rest = files[REST_GRAPH], files[REST_WEIGHTS]
            definition = files[TOKENIZER_FILE]
        except (KeyError, TypeError, ValueError) as error:
            raise RecsysError("encoder_invalid", f"the encoder's files are incomplete: {error}") from error
        tokenizer = Tokenizer(definition, TokenLimits(config.max_chars, config.max_tokens))
        return cls(first, rest, tokenizer, config, threads=threads)


class _Part:
    """One compiled graph that runs batches side by side."""

    def __init__(
        self,
        content: tuple[bytes, bytes],
        config: ExitConfig,
        threads: int,
        name: str,
        *,
        ranks: tuple[int, ...],
        widths: tuple[int, ...],
    ) -> None:
        """Compile; `ranks` of the inputs and last sizes of the outputs must be the graph's."""
        graph, weights = content
        try:
            core = openvino.Core()
            model = core.read_model(model=graph, weights=openvino.Tensor(np.frombuffer(weights, np.uint8)))
            compiled = core.compile_model(model, "CPU", compile_options(config.precision, threads))
            shapes = [port.partial_shape for port in compiled.outputs]
            found_ranks = tuple(len(port.partial_shape) for port in compiled.inputs)
            found_widths = tuple(shape[len(shape) - 1].get_length() for shape in shapes)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RecsysError("encoder_invalid", f"OpenVINO refuses the graph: {reason}", name) from error
        if (found_ranks, found_widths) != (ranks, widths):
            raise RecsysError("encoder_invalid", "another graph than this part's:", name)
        self._outputs = range(len(widths))
        self._queue = openvino.AsyncInferQueue(compiled, threads)

    def run(self, batches: Iterable[tuple[Any, ...]], keep: Callable[[Int64, list[Float32]], None]) -> None:
        """Run batches of row numbers and inputs; `keep` gets the rows and outputs, which it must copy."""

        def done(request: openvino.InferRequest, rows: Int64) -> None:
            keep(rows, [request.get_output_tensor(number).data for number in self._outputs])

        self._queue.set_callback(done)
        try:
            for rows, *inputs in batches:
                self._queue.start_async(dict(enumerate(inputs)), rows)
        finally:  # a signal may end the loop: nothing must run on after it
            self._queue.wait_all()
