"""From a recipe to an encoder: methods in their order, recovery after each lossy one, then the runtime.

What stands before the last step is kept on disk by the digest of everything that decides it, so that
recipes with a common beginning share it, and a search that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from recsys.compression.early_exit import early_exit
from recsys.compression.factorisation import factorise_words
from recsys.compression.gradual import prune_gradually
from recsys.compression.magnitude import masks_held, prune_weights
from recsys.compression.modules import drop_modules
from recsys.compression.onnx_int8 import build_onnx
from recsys.compression.projection import project
from recsys.compression.pruning import prune
from recsys.compression.quantization_aware import build_aware, quantization_aware
from recsys.compression.receipt import closeness
from recsys.compression.recipe import METHODS, STATIC, Recipe, Step
from recsys.compression.sharing import share_layers
from recsys.compression.static import static_table
from recsys.compression.variant import Variant
from recsys.compression.vocabulary import trim_vocabulary
from recsys.events import Float32
from recsys.storage import read_folder, write_folder
from recsys.text.openvino_runtime import Precision
from recsys.text.quantization import build_encoder
from recsys.text.runtime import SavedEncoder
from recsys.text.settings import DistillationConfig
from recsys.text.student import Lessons, imitate
from recsys.text.tokenization import Tokenizer
from recsys.text.transformer import TextTransformer

TOKENIZER_FILE = "tokenizer.json"
BRIEF = 0.4
"""Share of the recovery's tokens after a step that is mended by a closed form already."""

_MENDED = frozenset({"heads", "neurons", "word-rank", "dims"})

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """What all variants are made from.

    Attributes:
        root: the uncompressed model.
        texts: the catalogue's.
        embeddings: (texts, dim) the root's.
        lessons: what recovery learns.
        recovery: how it learns; `layers` is not read.
        folder: keeps what stands before the last step of a recipe; None keeps nothing.
        threads: cores of the encoders.
    """

    root: Variant
    texts: Sequence[str]
    embeddings: Float32
    lessons: Lessons
    recovery: DistillationConfig
    folder: Path | None = None
    threads: int = 2


@dataclass(frozen=True)
class Built:
    """An encoder ready to run, the network that it was compiled from (None for a table), and the seconds."""

    encoder: SavedEncoder
    variant: Variant | None
    seconds: float


def build(recipe: Recipe, source: Source, progress: Progress | None = None) -> Built:
    """Make the variant; of an encoder fine-tuned for int8 and one that was not, the nearer to the root.

    Raises:
        ValueError: a method refuses what the steps before it left.
        RecsysError: `missing_extra` for the ONNX runtime, where it is not installed.
    """
    began = time.monotonic()
    report = progress or (lambda done, total: None)
    variant = prepared(recipe, source, report)
    if recipe.runtime == STATIC:
        held = set(source.lessons.holdout)  # they measure, and must be as new to a table as to a network
        rows = [row for row, text in enumerate(source.texts) if text not in held]
        pairs = int(recipe.value_of("pairs") or 0)
        texts, embeddings = [source.texts[row] for row in rows], source.embeddings[rows]
        table = static_table(variant, texts, embeddings, pairs=pairs)
        return Built(table, None, time.monotonic() - began)
    encoder = compiled(recipe, variant, source)
    if recipe.aware:
        taught = quantization_aware(variant, source.lessons, brief_recovery(source), report)
        again = build_aware(taught, source.texts, threads=source.threads, sparse=recipe.sparse)
        if _held_out_cosine(again, source) >= _held_out_cosine(encoder, source):
            variant, encoder = taught, again
    return Built(encoder, variant, time.monotonic() - began)


def _held_out_cosine(encoder: SavedEncoder, source: Source) -> float:
    return closeness(encoder.encode(source.lessons.holdout), source.lessons.holdout_targets).cosine


def compiled(recipe: Recipe, variant: Variant, source: Source) -> SavedEncoder:
    """The network in its runtime."""
    transformer, tokenizer, threads = variant.transformer, variant.tokenizer, source.threads
    if recipe.runtime == "onnx-int8":
        return build_onnx(transformer, tokenizer, threads=threads)
    (precision,) = (name for name in get_args(Precision) if name == recipe.runtime)
    share = recipe.value_of("exit")
    if share is not None:
        layer = max(1, transformer.architecture.depth // 2)
        return early_exit(
            variant, source.texts, layer=layer, share=share, precision=precision, threads=threads
        )
    return build_encoder(
        transformer, tokenizer, source.texts, precision=precision, threads=threads, sparse=recipe.sparse
    )


def prepared(recipe: Recipe, source: Source, progress: Progress) -> Variant:
    """The network after all methods; the longest beginning that is kept is not made again."""
    steps = [step for step in recipe.steps if step.method not in ("exit", "pairs")]
    done, variant = _longest_kept(steps, source)
    for place in range(done, len(steps)):
        variant = apply(steps[place], variant, source, progress)
        _keep(steps[: place + 1], variant, source)
    return variant


def apply(step: Step, variant: Variant, source: Source, progress: Progress) -> Variant:
    """One method, and recovery where it is lossy."""
    after = _METHODS[step.method](variant, step, source, progress)
    if not METHODS[step.method].lossy or step.method.startswith("gradual"):
        return after
    settings = brief_recovery(source) if step.method in _MENDED else source.recovery
    with ExitStack() as held:
        if step.method == "magnitude":
            held.enter_context(masks_held(after.transformer))
        imitate(after.transformer, after.tokenizer, source.lessons, settings, progress=progress)
    return after


def brief_recovery(source: Source) -> DistillationConfig:
    """Recovery of fewer tokens."""
    return replace(source.recovery, max_tokens_seen=int(source.recovery.max_tokens_seen * BRIEF))


def _gradually(variant: Variant, step: Step, source: Source, progress: Progress) -> Variant:
    part = "heads" if step.method == "gradual-heads" else "feed_forward"
    kept = {part: step.count}
    return prune_gradually(variant, source.texts, source.lessons, source.recovery, progress=progress, **kept)


def _layers(variant: Variant, step: Step, source: Source, progress: Progress) -> Variant:
    return variant.then(f"layers-{step.count}", TextTransformer.from_teacher(variant.transformer, step.count))


_METHODS: dict[str, Callable[[Variant, Step, Source, Progress], Variant]] = {
    "layers": _layers,
    "heads": lambda variant, step, source, _: prune(variant, source.texts, heads=step.count),
    "neurons": lambda variant, step, source, _: prune(variant, source.texts, feed_forward=step.count),
    "gradual-heads": _gradually,
    "gradual-neurons": _gradually,
    "modules": lambda variant, step, source, _: drop_modules(variant, source.texts, count=step.count),
    "magnitude": lambda variant, step, source, _: prune_weights(variant, share=step.value),
    "vocabulary": lambda variant, step, source, _: trim_vocabulary(
        variant, source.texts, least_count=step.count
    ),
    "word-rank": lambda variant, step, source, _: factorise_words(variant, source.texts, rank=step.count),
    "shared": lambda variant, step, source, _: share_layers(variant, group=step.count),
    "dims": lambda variant, step, source, _: project(variant, source.texts, dims=step.count),
}


def fingerprint(source: Source, steps: Sequence[Step]) -> str:
    """Digest of everything that decides the network after these steps."""
    digest = hashlib.blake2b(digest_size=16)
    for content in source.root.transformer.to_files().values():
        digest.update(hashlib.sha256(content).digest())
    digest.update(hashlib.sha256(source.root.tokenizer.definition).digest())
    for text in sorted(set(source.texts)):
        digest.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
    decisive = [asdict(source.recovery), asdict(source.root.tokenizer.limits), list(map(str, steps))]
    digest.update(json.dumps(decisive, sort_keys=True).encode())
    return digest.hexdigest()


def _longest_kept(steps: Sequence[Step], source: Source) -> tuple[int, Variant]:
    """How many of the first steps are on disk, and the network after them."""
    for count in range(len(steps), 0, -1):
        folder = _folder(steps[:count], source)
        files = read_folder(folder, TOKENIZER_FILE) if folder else None
        if files:
            tokenizer = Tokenizer(files[TOKENIZER_FILE], source.root.tokenizer.limits)
            recipe = (*source.root.recipe, *map(str, steps[:count]))
            return count, Variant(TextTransformer.from_files(files), tokenizer, recipe)
    return 0, source.root


def _keep(steps: Sequence[Step], variant: Variant, source: Source) -> None:
    if folder := _folder(steps, source):
        files = {**variant.transformer.to_files(), TOKENIZER_FILE: variant.tokenizer.definition}
        write_folder(folder, files, TOKENIZER_FILE)


def _folder(steps: Sequence[Step], source: Source) -> Path | None:
    return None if source.folder is None else source.folder / fingerprint(source, steps)
