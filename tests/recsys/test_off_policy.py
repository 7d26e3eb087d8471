"""Off-policy estimates: against hand-computed slates, and against worlds whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Catalogue, Dataset
from recsys.dataset_folder import load
from recsys.errors import RecsysError
from recsys.events import Slates, lengths_to_offsets
from recsys.metrics.intervals import Interval
from recsys.off_policy import Attraction, OffPolicyConfig, check_propensities, estimate, fit_examination
from recsys.requests import DAY_S, Requests
from recsys.reranking import ExplorationConfig, Reranker, RerankingConfig
from recsys.simulation import SimulationConfig, Truth, simulate

PLACES = 4


def slates_of(items, clicked, propensity) -> Slates:
    """Slates of equal length; one user each."""
    items = np.asarray(items, np.int32)
    count, places = items.shape
    return Slates(
        np.arange(count, dtype=np.int32),
        np.zeros(count),
        lengths_to_offsets(np.full(count, places)),
        items.ravel(),
        np.asarray(clicked, np.bool_).ravel(),
        np.tile(np.arange(1, places + 1), count).astype(np.int16),
        np.asarray(propensity, np.float32).ravel(),
        np.arange(count),
    )


def drawn_without_repetition(mass: np.ndarray, slates: np.ndarray) -> np.ndarray:
    """Propensity of each place: the item's mass over that of the items that are left."""
    own = mass[slates]
    return own / (1.0 - np.cumsum(own, axis=1) + own)


def test_a_slate_by_hand():
    slates = slates_of([[5, 7]], [[True, True]], [[0.5, 0.25]])
    found = estimate(slates, np.array([[7, 5]], np.int32), np.array([1.0, 0.5]))
    masses = np.array([0.5 / 0.5, 0.5 + 1.0 / 0.25])  # e is .5 for item 5 and 1 for item 7
    values = np.array([0.5 / 0.5 * 1.0, 0.5 * 1.0 + 1.0 / 0.25 / 0.5])  # clicks over examination 1, .5
    share = masses**-2 / (masses**-2).sum()
    assert found.ips.mean == pytest.approx((share * values).sum() / 2)
    assert found.snips.mean == pytest.approx(1.5 * (share * values).sum() / (share * masses).sum() / 2)
    assert found.logged.mean == 1.0
    assert found.overlap == pytest.approx((share * masses).sum() / 1.5)
    assert found.effective_slates == 1.0


def tiny_log(draws: np.ndarray, examination: np.ndarray, count: int) -> Slates:
    """Slates of three of four items, drawn without repetition with uneven masses, and their clicks."""
    rng, mass = np.random.default_rng(3), np.array([0.4, 0.3, 0.2, 0.1])
    keys = rng.exponential(size=(count, 4)) / mass  # the order of exponential races is such a draw
    shown = np.argsort(keys, axis=1)[:, :3]
    clicked = rng.random((count, 3)) < draws[shown] * examination
    slates = slates_of(shown, clicked, drawn_without_repetition(mass, shown))
    return replace(slates, user_index=(np.arange(count) % 500).astype(np.int32))


DRAWS, EXAMINATION = np.array([0.5, 0.1, 0.3, 0.8]), np.array([1.0, 0.7, 0.4])


@pytest.mark.parametrize("target", [[3, 2, 1], [0, 1, 2], [2, 0, -1], [3, -1, -1]])
@pytest.mark.parametrize("guess", [0.3, 1.5])
def test_every_estimate_of_a_tiny_world_finds_the_truth_also_with_a_wrong_model(target, guess):
    slates = tiny_log(DRAWS, EXAMINATION, 200_000)
    lists = np.tile(np.array(target, np.int32), (len(slates), 1))
    model = Attraction(np.full(len(slates.item_index), guess), np.full(lists.shape, guess))
    found = estimate(slates, lists, EXAMINATION, attraction=model)
    wanted = [item for item in target if item >= 0]
    truth = (DRAWS[wanted] * EXAMINATION[: len(wanted)]).mean()
    for interval in (found.ips, found.snips, found.doubly_robust):
        assert abs(interval.mean - truth) < 2.2 * (interval.high - interval.low) / 2
        assert interval.high - interval.low < 0.05 * truth
    assert found.overlap == pytest.approx(1.0, abs=0.02)
    assert found.model.mean == pytest.approx(guess * EXAMINATION[: len(wanted)].mean())


def test_the_examination_is_found_where_the_better_items_stand_on_top():
    places = np.arange(1, 4) ** -0.6
    slates = tiny_log(np.array([0.9, 0.5, 0.2, 0.1]), places, 200_000)
    np.testing.assert_allclose(fit_examination(slates), places, atol=0.03)
    raw = slates.clicked.reshape(-1, 3).mean(axis=0)
    assert raw[2] / raw[0] < places[2] - 0.1  # click rates alone would blame the places


def test_an_examination_without_clicks_is_flat():
    assert fit_examination(slates_of([[1, 2]], [[False, True]], [[0.5, 0.5]])).tolist() == [1.0, 1.0]


def test_cutting_weights_is_counted_and_gives_less():
    slates = tiny_log(DRAWS, EXAMINATION, 5000)
    lists = np.tile(np.array([3, 2], np.int32), (len(slates), 1))
    whole = estimate(slates, lists, EXAMINATION)
    cut = estimate(slates, lists, EXAMINATION, config=OffPolicyConfig(most_weight=2.0))
    assert whole.clipped == 0.0 < cut.clipped < 1.0
    assert cut.ips.mean < whole.ips.mean
    assert cut.effective_slates > whole.effective_slates
    assert cut.overlap == pytest.approx(whole.overlap, abs=0.1)


@pytest.mark.parametrize("wrong", [np.nan, 0.0, 1.5])
def test_a_missing_or_impossible_propensity_is_refused_and_counted(wrong):
    slates = tiny_log(DRAWS, EXAMINATION, 10)
    propensity = slates.propensity.copy()
    propensity[4] = wrong
    with pytest.raises(RecsysError, match=r"no_propensities: 1 of 30 shown items"):
        check_propensities(replace(slates, propensity=propensity))
    for nothing in (None, replace(slates, propensity=np.full(30, np.nan, np.float32))):
        with pytest.raises(RecsysError, match=r"no_propensities: .* need impressions"):
            check_propensities(nothing)


def test_a_slate_out_of_the_order_of_its_places_is_refused():
    slates = tiny_log(DRAWS, EXAMINATION, 10)
    assert check_propensities(slates) is slates
    swapped = slates.position.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    with pytest.raises(RecsysError, match="positions_invalid"):
        check_propensities(replace(slates, position=swapped))


@pytest.mark.parametrize("target", [[9, 8], [0, 9], [-1, -1]])
def test_a_target_that_the_log_never_shows_is_refused(target):
    slates = tiny_log(DRAWS, EXAMINATION, 1000)
    with pytest.raises(RecsysError, match="no_overlap") as caught:
        estimate(
            slates,
            np.tile(np.array(target, np.int32), (1000, 1)),
            EXAMINATION,
            config=OffPolicyConfig(least_overlap=0.7),
        )
    assert caught.value.exit_code == 65


def test_what_our_own_exploration_logs_can_be_evaluated():
    """Lists of `Reranker` with their propensities, clicked by the position-based model."""
    count, items, k, rng = 40_000, 12, 4, np.random.default_rng(7)
    draws, examination = rng.uniform(0.05, 0.6, items), np.arange(1, k + 1) ** -0.5
    offsets = lengths_to_offsets(np.full(count, items))
    requests = Requests.of(
        np.arange(count), np.full(count, 1e9), np.zeros(count), (offsets, np.tile(np.arange(items), count))
    )
    catalogue = Catalogue.from_frame(pl.DataFrame({"item_id": range(items), "title": ["t"] * items}))
    config = RerankingConfig(exploration=ExplorationConfig(0.4))
    reranker = Reranker(config, catalogue, np.zeros((items, 2), np.float32))
    ranked = reranker.rerank(requests, np.tile(np.linspace(1, 0, items), count), k, np.zeros(count, np.int8))
    shown = ranked.item_index.reshape(count, k)
    clicked = rng.random((count, k)) < draws[shown] * examination
    slates = slates_of(shown, clicked, ranked.propensity.reshape(count, k))
    slates = replace(slates, user_index=(np.arange(count) % 500).astype(np.int32))
    target = np.array([7, 11, 0, 5], np.int32)
    found = estimate(slates, np.tile(target, (count, 1)), examination)
    truth = (draws[target] * examination).mean()
    for interval in (found.ips, found.snips):
        assert interval.low < truth < interval.high
        assert interval.high - interval.low < 0.25 * truth
    assert not found.logged.low < truth < found.logged.high


@dataclass(frozen=True)
class World:
    """Logged slates, a target that is far from the log, its true value, and the true attraction."""

    slates: Slates
    target: np.ndarray
    value: float
    attraction: Attraction
    examination: np.ndarray


def world_of(seed: int, folder: Path) -> World:
    """The best four unseen items for everybody by the true attraction; the model is a fifth too low."""
    config = SimulationConfig(users=300, items=200, days=10, seed=seed, slate_size=8, new_items_share=0.1)
    simulate(folder / str(seed), config)
    data, _ = load(folder / str(seed))
    truth = Truth(config)
    slates = data.slates.take(np.flatnonzero(data.slates.timestamp > config.start_s + DAY_S))
    user = np.array([int(name[1:]) for name in data.users.take(slates.user_index)])
    everything = np.tile(np.arange(len(data.catalogue)), (len(slates), 1))
    draws = truth.attraction(user, slates.timestamp, everything).astype(np.float64)
    midnight = np.floor(slates.timestamp / DAY_S)[:, None] * DAY_S
    usable = (first_clicks(data)[slates.user_index] >= midnight) & (truth.created_s < midnight)
    target = np.argsort(np.where(usable, -draws, 1.0), axis=1)[:, :PLACES].astype(np.int32)
    examination = truth.examination(8).astype(np.float64)
    best = np.take_along_axis(draws, target.astype(np.int64), axis=1)
    owner = np.repeat(np.arange(len(slates)), np.diff(slates.offsets))
    model = Attraction(0.8 * draws[owner, slates.item_index], 0.8 * best)
    return World(slates, target, float((best * examination[:PLACES]).mean()), model, examination)


def first_clicks(data: Dataset) -> np.ndarray:
    """(users, items) moment of the first click; the log does not show recent clicks again."""
    slates = data.slates
    slate = np.repeat(np.arange(len(slates)), np.diff(slates.offsets))[slates.clicked]
    moments = np.full((len(data.users), len(data.catalogue)), np.inf)
    where = (slates.user_index[slate], slates.item_index[slates.clicked])
    np.minimum.at(moments, where, slates.timestamp[slate])
    return moments


def test_intervals_hold_the_true_value_of_a_policy_far_from_the_log(tmp_path):
    squares = np.zeros(2)
    for seed in range(6):
        world = world_of(seed, tmp_path)
        found = estimate(world.slates, world.target, world.examination, attraction=world.attraction)
        for interval in (found.ips, found.snips, found.doubly_robust):
            assert interval.low < world.value < interval.high
        assert found.logged.high < 0.5 * world.value  # the policies are clearly different
        assert found.effective_slates < 0.5 * found.slates
        naive = without_correction(world)
        assert not naive.low < world.value < naive.high
        fitted = estimate(world.slates, world.target, fit_examination(world.slates)).ips
        assert fitted.low < world.value < fitted.high
        squares += np.array([width(found.doubly_robust), width(found.ips)]) ** 2
    assert squares[0] < 0.9 * squares[1]


def without_correction(world: World) -> Interval:
    """What the clicks on the target's items say where nobody asks how they came to be shown."""
    slates = replace(world.slates, propensity=np.ones_like(world.slates.propensity))
    config = OffPolicyConfig(least_overlap=0.0)
    return estimate(slates, world.target, world.examination, config=config).snips


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_the_truth_of_shown_items_is_what_the_simulator_wrote(tmp_path):
    config = SimulationConfig(users=100, items=80, days=4, seed=2, slate_size=5)
    simulate(tmp_path, config)
    slates, truth = pl.read_parquet(tmp_path / "impressions.parquet"), Truth(config)
    user = slates["user_id"].str.slice(1).cast(pl.Int64).to_numpy()
    moment = slates["timestamp"].dt.epoch("us").to_numpy() / 1e6
    shown = slates["shown"].list.eval(pl.element().str.slice(1).cast(pl.Int64))
    items = np.array(shown.to_list())
    written = pl.read_parquet(tmp_path / "truth.parquet")["attraction"].to_numpy().reshape(items.shape)
    np.testing.assert_allclose(truth.attraction(user, moment, items), written, atol=1e-6)
    np.testing.assert_allclose(truth.examination(5), np.arange(1, 6) ** -0.25, rtol=1e-6)
