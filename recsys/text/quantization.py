"""From the torch model to an OpenVINO encoder: export, static int8 by NNCF, and the check of the result."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch

from recsys.text.item_text import evenly
from recsys.text.openvino_runtime import EncoderConfig, OpenVinoEncoder, Precision
from recsys.text.runtime import Encoder, plan_batches
from recsys.text.tokenization import Tokenizer
from recsys.text.transformer import TextTransformer

CALIBRATION_TEXTS = 256
CALIBRATION_TOKENS = 512
LOWEST_COSINE = 0.99

logger = logging.getLogger(__name__)


def build_encoder(
    transformer: TextTransformer,
    tokenizer: Tokenizer,
    calibration_texts: Sequence[str],
    *,
    precision: Precision = "int8",
    threads: int = 2,
    sparse: bool = False,
) -> OpenVinoEncoder:
    """Compile a text model for serving.

    Args:
        transformer: the network.
        tokenizer: its tokenizer with the limits to keep.
        calibration_texts: texts like those to come. At most 256, taken evenly, set the int8 scales;
            "fp32" and "bf16" do not read them.
        precision: what to build. An int8 graph whose mean cosine to the fp32 one falls under .99 on
            the calibration texts is dropped for fp32 (`encoder.config.precision` tells), as is int8
            where there is no text to calibrate on.
        threads: cores the encoder uses.
        sparse: its weights are stored without their zeros (see `compression.magnitude`).
    """
    model = export(transformer)
    plain_precision: Precision = "bf16" if precision == "bf16" else "fp32"
    plain = _encoder(model, transformer, tokenizer, plain_precision, threads=threads, sparse=sparse)
    if precision != "int8":
        return plain
    texts = evenly(calibration_texts, CALIBRATION_TEXTS)
    batches = calibration_batches(tokenizer, texts)
    if not batches:
        return plain
    smaller = quantize(model, batches)
    quantized = _encoder(smaller, transformer, tokenizer, "int8", threads=threads, sparse=sparse)
    cosine = mean_cosine(quantized, plain, texts)
    if cosine < LOWEST_COSINE:
        logger.warning("int8 encoder has cosine %.4f to fp32; keeping fp32", cosine)
        return plain
    return quantized


def export(network: torch.nn.Module, inputs: dict[str, torch.Tensor] | None = None) -> openvino.Model:
    """The network as an OpenVINO model with free batch size and length.

    Args:
        network: what to export; it goes to evaluation mode.
        inputs: examples (2, 8, ...) of what it takes, by name; None for token ids and their mask.
    """
    example = torch.ones(2, 8, dtype=torch.int64)
    inputs = inputs or {"input_ids": example, "attention_mask": example.clone()}
    with warnings.catch_warnings():
        # OpenVINO traces with torch.jit, which announces its end on every call.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        model = openvino.convert_model(network.eval(), example_input=inputs)
    shapes = enumerate(openvino.PartialShape([-1, -1, *each.shape[2:]]) for each in inputs.values())
    model.reshape(dict(shapes))
    return model


def quantize(model: openvino.Model, batches: Sequence[dict[str, np.ndarray]]) -> openvino.Model:
    """Static int8 weights and activations, scales from the batches; the same in whatever batch it runs."""
    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        fast_bias_correction=True,
    )


def mean_cosine(encoder: Encoder, reference: Encoder, texts: Sequence[str]) -> float:
    """Mean cosine between two encoders' embeddings of the texts that have any; 1.0 for none."""
    ours, theirs = encoder.encode(texts), reference.encode(texts)
    cosine = np.einsum("td,td->t", ours, theirs)[np.linalg.norm(theirs, axis=1) > 0]
    return float(cosine.mean()) if len(cosine) else 1.0


def _encoder(
    model: openvino.Model,
    transformer: TextTransformer,
    tokenizer: Tokenizer,
    precision: Precision,
    *,
    threads: int,
    sparse: bool,
) -> OpenVinoEncoder:
    limits = tokenizer.limits
    config = EncoderConfig(transformer.dim, limits.max_chars, limits.max_tokens, precision)
    return OpenVinoEncoder(*serialize(model), tokenizer, config, threads=threads, sparse=sparse)


def serialize(model: openvino.Model) -> tuple[bytes, bytes]:
    """OpenVINO IR as bytes; the library writes files only.

    Names are given afresh: the library counts them over the life of the process, and the same model
    is to be the same bytes.
    """
    model.set_friendly_name("encoder")
    for index, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{index}")
        notes = node.get_rt_info()
        for key in [key for key in notes if key.startswith("fused_names")]:
            del notes[key]
    with tempfile.TemporaryDirectory() as folder:
        graph, weights = Path(folder, "encoder.xml"), Path(folder, "encoder.bin")
        openvino.serialize(model, graph, weights)
        return graph.read_bytes(), weights.read_bytes()


def calibration_batches(tokenizer: Tokenizer, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """The texts as inputs of the network by name, at most 512 tokens a batch."""
    planned = plan_batches(tokenizer.encode(texts), token_budget=CALIBRATION_TOKENS)
    return [{"input_ids": ids, "attention_mask": mask} for _, ids, mask in planned]
