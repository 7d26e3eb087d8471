"""Settings of distillation and fine-tuning, apart from the code that needs torch.

The configuration is read where torch is not installed, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from recsys.errors import EXIT_CONFIG, RecsysError
from recsys.relevance_weights import HeadConfig

Mode = Literal["frozen", "full", "lora", "ia3", "prompt", "prefix"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class DistillationConfig:
    """How a student is made.

    Attributes:
        layers: layers kept of the teacher.
        max_tokens_seen: training ends after this many tokens, all passes together.
        max_epochs: and at the latest after this many passes over the texts.
        batch_size: texts a step.
        learning_rate: highest rate of AdamW; it warms up, then falls along a cosine to zero.
        warmup_steps: steps of the rise.
        holdout_share: share of the texts that only measure, 500 texts at most.
        max_texts: longer catalogues are sampled down to this many texts.
        similarity_weight: weight of the squared differences between the cosines of a step's texts with each
            other and the teacher's, beside those of the embeddings themselves.
        patience: passes without a better held-out cosine before training stops.
        seconds: upper guard on the wall clock of training; a run that meets it is not reproducible.
        seed: of the sample, the altered copies and the order.
    """

    layers: int = 3
    max_tokens_seen: int = 250_000
    max_epochs: int = 40
    batch_size: int = 16
    learning_rate: float = 7e-4
    warmup_steps: int = 20
    holdout_share: float = 0.05
    max_texts: int = 20_000
    similarity_weight: float = 0.0
    patience: int = 3
    seconds: float = 600.0
    seed: int = 0


@dataclass(frozen=True)
class ContrastConfig:
    """How the encoder learns what comes next in a history.

    Attributes:
        batch_size: pairs a step; each has the positives of the others as negatives.
        temperature: divides similarities; the smaller, the more the nearest negatives count.
        log_q: correct each negative for how often it is drawn; else all count alike.
        hard_negatives: mined negatives of a pair that a step draws; 0 mines none.
        mined: best items of each candidate source that they are drawn from.
        history_limit: newest history events of a pair.
        holdout_texts: texts encoded at most to judge the encoder.
    """

    batch_size: int = 64
    temperature: float = 0.05
    log_q: bool = True
    hard_negatives: int = 0
    mined: int = 10
    history_limit: int = 6
    holdout_texts: int = 1500


@dataclass(frozen=True)
class FinetuneConfig:
    """How the encoder learns from behaviour.

    Attributes:
        objective: `click` learns labelled requests through the relevance head, `contrastive` the next
            item of a history; `auto` is `click` where impressions tell what was not clicked, else
            `contrastive`.
        mode: `full` trains all layers (the word table stays, as in distillation), `lora` low-rank
            updates of the attention's query and value maps, `ia3` scales of keys, values and neurons,
            `frozen` nothing. For comparison only, since they have no place in an encoder's weights:
            `prompt` trains virtual tokens, `prefix` virtual keys and values in every layer.
        max_steps: optimiser steps.
        batch_size: requests a step (click).
        candidates: candidates of a request, up to half of them clicked (click).
        history_limit: newest history events of a request (click).
        max_texts: texts encoded a step; the cost of a step.
        max_tokens: a text is cut to so many tokens while training.
        learning_rate: highest rate of the encoder's AdamW in `full` mode; it warms up, then falls to 0.
        lora_learning_rate: the same in `lora` mode.
        lora_rank: rank of the updates.
        ia3_learning_rate: the same in `ia3` mode.
        prompt_learning_rate: the same in `prompt` and `prefix` mode.
        prompt_length: virtual tokens before a text, or keys and values before those of a layer.
        anchor: weight of the mean of 1 - cosine to the embedding before fine-tuning.
        head: of the head that is fitted first, and trained along at a third of its learning rate (click).
        contrast: of the contrastive objective.
        holdout: newest share of the requests or pairs, which judge the encoder.
        holdout_texts: texts encoded at most to judge it (click).
        evaluate_every: steps between two judgements.
        patience: judgements without a gain before stopping.
        min_gain: least fall of the held-out loss, in nats a row, that makes the new encoder worth keeping.
        seed: of order, sampling and LoRA's start.
    """

    objective: Literal["auto", "click", "contrastive"] = "auto"
    mode: Mode = "full"
    max_steps: int = 100
    batch_size: int = 16
    candidates: int = 6
    history_limit: int = 12
    max_texts: int = 96
    max_tokens: int = 32
    learning_rate: float = 3e-5
    lora_learning_rate: float = 5e-4
    lora_rank: int = 8
    ia3_learning_rate: float = 2e-3
    prompt_learning_rate: float = 1e-3
    prompt_length: int = 8
    anchor: float = 0.5
    head: HeadConfig = field(default_factory=HeadConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    holdout: float = 0.1
    holdout_texts: int = 800
    evaluate_every: int = 34
    patience: int = 2
    min_gain: float = 1e-4
    seed: int = 0

    def check_mergeable(self) -> None:
        """Refuse the modes that give no encoder of its own.

        Raises:
            RecsysError: `config_invalid` (exit 78).
        """
        if self.mode in ("prompt", "prefix"):
            raise RecsysError(
                "config_invalid",
                f"mode {self.mode} is for the comparison of adaptations only: its virtual tokens have no "
                "place in an encoder; use full, lora, ia3 or frozen",
                "finetuning.mode",
                exit_code=EXIT_CONFIG,
            )
