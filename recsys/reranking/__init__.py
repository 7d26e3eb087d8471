"""What is done to a list after it is ranked: business rules, diversity, exploration."""

from recsys.reranking.diversity import DiversityConfig
from recsys.reranking.exploration import ExplorationConfig
from recsys.reranking.reranker import Reranker, RerankingConfig
from recsys.reranking.rules import Rule

__all__ = ["DiversityConfig", "ExplorationConfig", "Reranker", "RerankingConfig", "Rule"]
