"""The comparison rung: the torch model as an ONNX graph with dynamic int8, checked in the runtime."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from recsys.errors import EXIT_SOFTWARE, RecsysError
from recsys.text.onnx_runtime import GRAPH_FILE, INPUTS, OUTPUT, OnnxEncoder, Precision, optional
from recsys.text.tokenization import Tokenizer
from recsys.text.transformer import TextTransformer

if TYPE_CHECKING:
    import onnx

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LOWEST_COSINE = 0.9
PROBES = 32


def build_onnx(
    transformer: TextTransformer, tokenizer: Tokenizer, *, precision: Precision = "int8", threads: int = 2
) -> OnnxEncoder:
    """Compile a text model for ONNX Runtime.

    Args:
        transformer: the network.
        tokenizer: its tokenizer with the limits to keep.
        precision: "int8" rounds the matrices channel by channel, the word table by one scale, and measures
            the activations' scales anew for every text; "fp32" rounds nothing.
        threads: texts run at a time.

    Raises:
        RecsysError: `missing_extra` without the extra `compare`; `encoder_invalid` where the mean cosine to
            the network falls under .9 on made-up token ids.
    """
    model = export(transformer)
    graph = quantize(model) if precision == "int8" else _bytes(model)
    encoder = OnnxEncoder(graph, tokenizer, precision, threads=threads)
    cosine = probe_cosine(encoder, transformer, tokenizer.limits.max_tokens)
    if not cosine >= LOWEST_COSINE:
        what = f"the {precision} graph has cosine {cosine:.3f} to the model, under {LOWEST_COSINE}:"
        raise RecsysError("encoder_invalid", what, GRAPH_FILE, exit_code=EXIT_SOFTWARE)
    return encoder


def export(transformer: TextTransformer) -> onnx.ModelProto:
    """The network with pooling and scaling to length 1, free in batch size and length.

    Raises:
        RecsysError: `missing_extra`.
    """
    for package in PACKAGES:
        optional(package)
    example = torch.ones(2, 8, dtype=torch.int64)
    free = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("tokens", max=transformer.architecture.positions),
    }
    with _quiet():
        program = torch.onnx.export(
            transformer.eval(),
            kwargs={name: example.clone() for name in INPUTS},
            output_names=[OUTPUT],
            dynamic_shapes=dict.fromkeys(INPUTS, free),
            dynamo=True,
            verbose=False,
        )
        assert program is not None  # noqa: S101 - None only where it writes a file
        # Matrices of shared layers are folded in a second pass only; unfolded ones would stay in fp32.
        program.optimize()
    return program.model_proto


def quantize(model: onnx.ModelProto) -> bytes:
    """The graph with dynamic int8: signed weights, one scale a channel; unsigned activations, one a run."""
    quantization = optional("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder, "encoder.onnx")
        quantization.quantize_dynamic(model, path, per_channel=True)
        return _bytes(optional("onnx").load(path))


@torch.inference_mode()
def probe_cosine(encoder: OnnxEncoder, transformer: TextTransformer, max_tokens: int) -> float:
    """Mean cosine of graph and network on 32 texts of random token ids, from one to `max_tokens` long."""
    rng = np.random.default_rng(0)
    cosines = []
    for length in np.linspace(1, max_tokens, PROBES).astype(int):
        tokens = torch.from_numpy(rng.integers(transformer.architecture.vocabulary, size=(1, length)))
        wanted = transformer(tokens, torch.ones_like(tokens))[0].numpy()
        cosines.append(float(encoder.embed(tokens[0].tolist()) @ wanted))
    return float(np.mean(cosines))


def _bytes(model: onnx.ModelProto) -> bytes:
    """Serialised without the exporter's notes on source lines, and without shapes that are inferred again."""
    graph = model.graph
    graph.ClearField("value_info")
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model.SerializeToString(deterministic=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without notices on absent packages, merged names and coming changes.

    The quantiser writes to the root logger, which sets itself up at that unless it has a handler.
    """
    exporter, root, silence = logging.getLogger("torch.onnx"), logging.getLogger(), logging.NullHandler()
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    root.addHandler(silence)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            yield
    finally:
        root.removeHandler(silence)
        exporter.setLevel(level)
