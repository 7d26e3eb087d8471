"""`recsys evaluate --rerank`: what diversity, exploration and business rules cost, on the same scores.

Every variant orders the same scored candidates of the same requests; nothing is fitted again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console

from pipelines.fitting import Step
from pipelines.terminal import table
from recsys.dataset import Catalogue
from recsys.events import Float32, Float64, Int32, Int64
from recsys.metrics import (
    category_entropy,
    coverage,
    intra_list_similarity,
    mean_interval,
    paired_interval,
    topk_metrics,
)
from recsys.recommender import request_blocks
from recsys.requests import Requests
from recsys.reranking import DiversityConfig, ExplorationConfig, Reranker, RerankingConfig

RELEVANCE_SHARES = (0.9, 0.8, 0.7, 0.5, 0.3)
EXPLORATION_SHARES = (0.05, 0.1, 0.2, 0.5)
CUTOFF = 10
PLAIN = "plain"


@dataclass(frozen=True)
class Scored:
    """Requests with scored candidates, what their users did, and what is known of the items.

    Attributes:
        candidates: r requests with candidates.
        scores: (rows,) the ranker's.
        positives: (offsets, item_index) of what each request's user did next.
        catalogue: the items.
        embeddings: (items, dim) of length 1, zeros where there is none.
    """

    candidates: Requests
    scores: Float64
    positives: tuple[Int64, Int32]
    catalogue: Catalogue
    embeddings: Float32

    def lists(self, config: RerankingConfig) -> Int32:
        """(requests, 10) the reranked lists, -1 padded."""
        reranker = Reranker(config, self.catalogue, self.embeddings)
        parts = [np.zeros((0, CUTOFF), np.int32)]
        for chosen in request_blocks(len(self.candidates)):
            rows = slice(self.candidates.offsets[chosen[0]], self.candidates.offsets[chosen[-1] + 1])
            rung = np.zeros(len(chosen), np.int8)
            ranked = reranker.rerank(self.candidates.take(chosen), self.scores[rows], CUTOFF, rung)
            parts.append(ranked.table(CUTOFF))
        return np.concatenate(parts)


def variants(configured: RerankingConfig, seed: int) -> Iterator[tuple[str, RerankingConfig]]:
    """Names and configurations of the table: one thing at a time, then what is configured."""
    yield PLAIN, RerankingConfig()
    for share in RELEVANCE_SHARES:
        yield f"diversity, lambda {share}", RerankingConfig(DiversityConfig(share, configured.diversity.pool))
    for share in EXPLORATION_SHARES:
        yield f"exploration, share {share}", RerankingConfig(exploration=ExplorationConfig(share, seed))
    if configured.rules:
        yield "rules", RerankingConfig(rules=configured.rules)
    if not configured.is_off:
        yield "as configured", replace(configured)


def reranking_prices(
    scored: Scored, configured: RerankingConfig, step: Step, *, seed: int = 0
) -> dict[str, Any]:
    """Each variant's metrics at 10 with intervals, and its paired NDCG difference to the plain lists."""
    chosen = list(variants(configured, seed))
    values, reach = {}, {}
    with step("reranking") as progress:
        for place, (name, config) in enumerate(chosen):
            lists = scored.lists(config)
            values[name] = {
                "ndcg_at_10": topk_metrics(lists, *scored.positives, (CUTOFF,))["ndcg_at_10"],
                "intra_list_similarity_at_10": intra_list_similarity(lists, scored.embeddings, CUTOFF),
                "category_entropy_at_10": category_entropy(lists, scored.catalogue.category, CUTOFF),
            }
            reach[name] = coverage(lists, len(scored.catalogue), CUTOFF)
            progress(place + 1, len(chosen))
    users = scored.candidates.user_index
    plain = values[PLAIN]["ndcg_at_10"]
    return {
        name: {
            **{metric: asdict(mean_interval(found, users)) for metric, found in metrics.items()},
            "coverage_at_10": reach[name],
            "ndcg_at_10_minus_plain": asdict(paired_interval(metrics["ndcg_at_10"], plain, users)),
        }
        for name, metrics in values.items()
    }


def print_reranking(prices: dict[str, Any], out: Console) -> None:
    """One line a variant."""
    columns = ["lists", "NDCG@10", "to plain (paired 95 %)", "coverage@10", "similarity", "entropy, bits"]
    rows = [
        [
            name,
            f"{entry['ndcg_at_10']['mean']:.4f}",
            "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**entry["ndcg_at_10_minus_plain"]),
            f"{entry['coverage_at_10']:.4f}",
            f"{entry['intra_list_similarity_at_10']['mean']:.3f}",
            f"{entry['category_entropy_at_10']['mean']:.3f}",
        ]
        for name, entry in prices.items()
    ]
    out.print(table("the price of reranking", columns, rows))
