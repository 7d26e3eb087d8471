"""Speed of our int8 encoders against sentence-transformers in fp32, in one run, the models taking turns.

Needs the train extra and sentence-transformers. Prints texts a second and ratios to the peer for short
texts (titles) and for texts of 60 tokens, on two threads each.

    python tests/benchmarks/encoder.py --texts 500 --rounds 5
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import time
from collections.abc import Callable

import numpy as np

from recsys.text.openvino_runtime import OpenVinoEncoder
from recsys.text.quantization import build_encoder
from recsys.text.teacher import PACKAGED_FOLDER, PACKAGED_TEACHER, Teacher, load_teacher
from recsys.text.transformer import TextTransformer

Encode = Callable[[list[str]], np.ndarray]

WORDS = (
    *("organic", "moisturizing", "shampoo", "with", "argan", "oil", "for", "dry", "hair", "large", "bottle"),
    *("wooden", "kitchen", "table", "solid", "oak", "classic", "mystery", "novel", "about", "a", "missing"),
    *(
        "painting",
        "running",
        "shoes",
        "lightweight",
        "breathable",
        "waterproof",
        "trail",
        "portable",
        "speaker",
        "wireless",
        "battery",
    ),
    *("twelve", "hours", "stainless", "steel", "garden", "tool", "set", "children", "puzzle", "animals"),
)


def main() -> None:
    """Time every model on both kinds of text and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=500, help="texts a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    teacher = load_teacher()
    encoders = build_all(teacher, sentences(rng, 256, 20), options.threads)
    print(f"{'texts':<10}{'model':<36}{'texts/s':>9}{'ratio':>8}")
    for name, words in (("titles", 16), ("60 tokens", 58)):
        texts = sentences(rng, options.texts, words)
        seconds = interleaved(encoders, texts, options.rounds)
        peer = seconds["sentence-transformers fp32"]
        for model, taken in seconds.items():
            print(f"{name:<10}{model:<36}{len(texts) / taken:>9.0f}{peer / taken:>7.1f}x")


def sentences(rng: np.random.Generator, count: int, words: int) -> list[str]:
    """Made-up texts of so many words, a quarter more or less."""
    lengths = rng.integers(int(words * 0.75), int(words * 1.25) + 1, count)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def build_all(teacher: Teacher, calibration: list[str], threads: int) -> dict[str, Encode]:
    """The peer and ours. The student is untrained: training changes no shape, so no speed."""
    student = TextTransformer.from_teacher(teacher.transformer, 3)
    ours: dict[str, OpenVinoEncoder] = {
        "teacher, OpenVINO bf16": build_encoder(
            teacher.transformer, teacher.tokenizer, [], precision="bf16", threads=threads
        ),
        "teacher, OpenVINO int8": build_encoder(
            teacher.transformer, teacher.tokenizer, calibration, threads=threads
        ),
        "3-layer student, OpenVINO int8": build_encoder(
            student, teacher.tokenizer, calibration, threads=threads
        ),
    }
    return {"sentence-transformers fp32": peer(threads)} | {
        name: model.encode for name, model in ours.items()
    }


def peer(threads: int) -> Encode:
    """The same teacher as people run it."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    folder = importlib.metadata.distribution(PACKAGED_TEACHER).locate_file(PACKAGED_FOLDER)
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 64
    return lambda texts: model.encode(texts, batch_size=32, normalize_embeddings=True)


def interleaved(encoders: dict[str, Encode], texts: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of each model over the rounds, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(rounds + 1):
        for name, encode in encoders.items():
            started = time.perf_counter()
            encode(texts)
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


if __name__ == "__main__":
    main()
