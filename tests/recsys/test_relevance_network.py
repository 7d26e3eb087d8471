import numpy as np

from recsys.relevance_examples import Examples
from recsys.relevance_network import SHRINKAGE, popularity_effects
from recsys.requests import Requests


def test_item_effects_are_shrunk_log_odds_over_the_mean():
    items = np.array([0, 0, 0, 1, 1, -1], np.int32)
    requests = Requests.of(np.zeros(1), np.zeros(1), np.zeros(1), (np.array([0, 6]), items))
    label = np.array([1, 1, 0, 0, np.nan, 1], np.float32)
    weight = np.array([2, 1, 1, 1, 1, 1], np.float32)
    effects = popularity_effects(Examples(requests.labelled(label), weight), items=3)
    mean = (3 + 1) / (5 + 2)
    odds = [
        (3 + SHRINKAGE * mean) / (1 + SHRINKAGE * (1 - mean)),
        (0 + SHRINKAGE * mean) / (1 + SHRINKAGE * (1 - mean)),
        mean / (1 - mean),  # never shown
    ]
    np.testing.assert_allclose(effects[:3], np.log(odds) - np.log(mean / (1 - mean)), atol=1e-6)
    assert effects[3] == 0
