"""Fewer words: the word table keeps what the corpus uses, and what every other text can be spelled with.

An unseen word falls back to shorter pieces, down to single characters, all of which stay: no text becomes
unknown that was not. WordPiece takes the longest piece first, so texts of the corpus keep their very tokens,
and their embeddings to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from recsys.compression.variant import Variant
from recsys.events import Int64
from recsys.text.tokenization import Tokenizer
from recsys.text.transformer import TextTransformer


def trim_vocabulary(variant: Variant, texts: Sequence[str], *, least_count: int = 1) -> Variant:
    """Keep the pieces that occur `least_count` times in `texts`, single characters and special tokens.

    Args:
        variant: what to trim; its tokenizer is of the WordPiece kind.
        texts: the corpus; blank texts count for nothing.
        least_count: a piece that occurs less often is spelled by shorter ones.

    Raises:
        ValueError: another kind of tokenizer, or `least_count` below one.
    """
    if least_count < 1:
        raise ValueError(f"least_count must be 1 or more, not {least_count}")
    definition = json.loads(variant.tokenizer.definition)
    if definition["model"].get("type") != "WordPiece":
        raise ValueError(f"cannot trim a {definition['model'].get('type')} vocabulary, only WordPiece")
    kept = _kept(definition, token_counts(variant, texts) >= least_count)
    transformer = variant.transformer
    trimmed = TextTransformer(replace(transformer.architecture, vocabulary=len(kept)))
    weights = transformer.state_dict() | {"words.weight": transformer.words.weight[torch.from_numpy(kept)]}
    trimmed.load_state_dict(weights)
    tokenizer = Tokenizer(json.dumps(_renumbered(definition, kept)).encode(), variant.tokenizer.limits)
    return variant.then(f"vocabulary-{len(kept)}", trimmed.eval(), tokenizer)


def token_counts(variant: Variant, texts: Sequence[str]) -> Int64:
    """(vocabulary,) how often each token occurs in the texts."""
    tokens = [token for ids in variant.tokenizer.encode(texts) for token in ids]
    return np.bincount(np.asarray(tokens, np.int64), minlength=variant.transformer.architecture.vocabulary)


def _kept(definition: dict[str, Any], used: np.ndarray) -> Int64:
    """Ascending token numbers."""
    prefix = definition["model"]["continuing_subword_prefix"]
    special = {definition["model"]["unk_token"], *(token["content"] for token in definition["added_tokens"])}
    special |= _processor_tokens(definition["post_processor"])
    kept = used.copy()
    for piece, number in definition["model"]["vocab"].items():
        kept[number] |= piece in special or len(piece.removeprefix(prefix)) == 1
    return np.flatnonzero(kept)


def _processor_tokens(processor: dict[str, Any]) -> set[str]:
    if processor["type"] == "TemplateProcessing":
        return {token for entry in processor["special_tokens"].values() for token in entry["tokens"]}
    return {processor[end][0] for end in ("sep", "cls")}


def _renumbered(definition: dict[str, Any], kept: Int64) -> dict[str, Any]:
    """The definition over the kept pieces, numbered in their old order."""
    number = {int(old): new for new, old in enumerate(kept)}
    vocabulary = definition["model"]["vocab"]
    pieces = {piece: number[old] for piece, old in vocabulary.items() if old in number}
    added = [token | {"id": number[token["id"]]} for token in definition["added_tokens"]]
    processor = dict(definition["post_processor"])
    if processor["type"] == "TemplateProcessing":
        processor["special_tokens"] = {
            name: entry | {"ids": [number[old] for old in entry["ids"]]}
            for name, entry in processor["special_tokens"].items()
        }
    else:
        processor |= {end: [processor[end][0], number[processor[end][1]]] for end in ("sep", "cls")}
    model = definition["model"] | {"vocab": pieces}
    return definition | {"model": model, "added_tokens": added, "post_processor": processor}
