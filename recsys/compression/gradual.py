"""Narrower layers little by little: many parts go first, few last, and the model recovers in between.

The counts follow the cubic schedule of Zhu & Gupta (2018): with rounds t = 1..n,
kept(t) = wanted + (present - wanted) (1 - t / n)^3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from recsys.compression.pruning import prune
from recsys.compression.variant import Variant
from recsys.text.settings import DistillationConfig
from recsys.text.student import Lessons, Progress, imitate


def prune_gradually(
    variant: Variant,
    texts: Sequence[str],
    lessons: Lessons,
    config: DistillationConfig,
    *,
    heads: int | None = None,
    feed_forward: int | None = None,
    rounds: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Variant:
    """Prune every layer to so many heads and neurons in rounds, each followed by recovery.

    Args:
        variant: what to prune; it is not changed.
        texts: what `prune` measures and fits on.
        lessons: what recovery learns.
        config: of the recovery of all rounds together, which share out its tokens and seconds evenly;
            `layers` is not read.
        heads: heads to keep a layer in the end; None keeps all.
        feed_forward: neurons to keep a layer, likewise.
        rounds: of pruning and recovery.
        seed: of the importance.
        progress: called with steps done and steps planned, of all rounds.

    Raises:
        ValueError: nothing is to be pruned, no round, more is to be kept than there is or a negative number,
            or no text has a token.
    """
    wanted = {"heads": heads, "feed_forward": feed_forward}
    counts = {name: count for name, count in wanted.items() if count is not None}
    if not counts or rounds < 1:
        raise ValueError("gradual pruning needs heads or feed_forward to keep, and one round at least")
    plans = {name: _plan(variant, name, count, rounds) for name, count in counts.items()}
    share = _share_of(variant, lessons, config, rounds)
    pruned = variant
    for number in range(rounds):
        kept = {name: plan[number] for name, plan in plans.items()}
        pruned = prune(
            pruned, texts, heads=kept.get("heads"), feed_forward=kept.get("feed_forward"), seed=seed
        )
        settings = replace(share, seed=config.seed + number)  # or each round would read the same texts
        report = _within(progress, number, rounds)
        imitate(pruned.transformer, pruned.tokenizer, lessons, settings, progress=report)
    names = {"heads": "heads", "feed_forward": "neurons"}
    step = "-".join(["pruned-gradually", *(f"{count}{names[name]}" for name, count in counts.items())])
    return variant.then(step, pruned.transformer)


def schedule(present: int, wanted: int, rounds: int) -> list[int]:
    """How many to keep after each round; the last is `wanted`."""
    return [round(wanted + (present - wanted) * (1 - t / rounds) ** 3) for t in range(1, rounds + 1)]


def _plan(variant: Variant, name: str, wanted: int, rounds: int) -> list[int]:
    present = min(getattr(shape, name) for shape in variant.transformer.architecture.layers)
    if not 0 <= wanted <= present:
        raise ValueError(f"{name} must lie in 0..{present}, not {wanted}")
    return schedule(present, wanted, rounds)


def _share_of(
    variant: Variant, lessons: Lessons, config: DistillationConfig, rounds: int
) -> DistillationConfig:
    """One round's part of the recovery: both caps, on tokens and on epochs, hold for all rounds together."""
    tokens = sum(map(len, variant.tokenizer.encode(lessons.texts)))
    whole = min(config.max_tokens_seen, config.max_epochs * tokens)
    return replace(config, max_tokens_seen=whole // rounds, seconds=config.seconds / rounds)


def _within(progress: Progress | None, number: int, rounds: int) -> Progress:
    """Reports one round's steps as part of all."""

    def report(done: int, planned: int) -> None:
        if progress is not None:
            progress(number * planned + done, rounds * planned)

    return report
