"""Assignment holds still and is fair, labels survive the wire, and answers are the assigned model's."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import chdtrc

from recsys.bundle import read_bundle
from recsys.errors import RecsysError
from serving.engine.answering import rank, recommend
from serving.engine.live_model import LiveModel
from serving.events.parsing import check_events, event_of
from serving.experiments.answer import answer_in
from serving.experiments.experiment import Arm, Experiment, Label, load_experiment, place_of
from serving.experiments.interleaving import MOST_PLACES, Teams
from serving.messages import LONGEST_ID, ModelName, RankRequest, RecommendRequest
from serving.problems import Refusal

AS_OF = 30 * 86_400.0
USERS = [f"u{number:02d}" for number in range(20)]
SPLIT = Experiment("newtext", "champion", "challenger")
DRAFT = Experiment("newtext", "champion", "challenger", share=1.0, mode="interleave")

names = st.from_regex(r"[A-Za-z0-9_.-]{1,32}", fullmatch=True)
ids = st.text(max_size=20) | st.integers(-(2**63), 2**63 - 1)


@pytest.fixture(scope="module")
def models(bundle_folder, second_folder):
    """The live models of both sides."""
    return {
        Arm.CONTROL: load(bundle_folder, 1, "champion"),
        Arm.TREATMENT: load(second_folder, 2, "challenger"),
    }


def load(folder, version, alias):
    return LiveModel.load(read_bundle(folder), ModelName(name="recsys", version=version, alias=alias))


def answered(models, experiment, user, request_id="r-1", k=10):
    def ask(arm):
        return recommend(models[arm], RecommendRequest(user_id=user, k=k), AS_OF)

    return answer_in(experiment, user, request_id, k, ask)


def ids_of(ranking):
    return [item.id for item in ranking.items]


def test_places_are_those_that_another_program_finds_by_the_documented_formula() -> None:
    digests = {  # printf 'newtext\0ID' | b2sum -l 64
        "17": 0x8EFEF829E8749E99,
        "alice": 0x38A07B6592C09CCB,
        "Zoë": 0x7D9DBEE79AC224D5,
        "0": 0x00188B30CCDEAC3A,
    }
    for user, digest in digests.items():
        assert place_of("newtext", user) == digest // 2**11 / 2**53
    assert Experiment("x", "a", "b", salt="a b").seed("r-1") == 0x94232D133E89C707 // 2


def test_an_id_has_one_place_whether_it_comes_as_a_number_or_as_text() -> None:
    assert place_of("s", 17) == place_of("s", "17")
    assert place_of("s", 17) != place_of("t", 17)


@pytest.mark.parametrize(
    "unit",
    [
        lambda n: n,
        lambda n: f"user-{n:06d}",
        lambda n: str(uuid.UUID(int=n * 2**40)),
        lambda n: "x" * (n % 7) + hex(n),
    ],
)
def test_places_of_a_hundred_thousand_users_are_uniform(unit) -> None:
    places = [place_of("newtext", unit(number)) for number in range(100_000)]
    counts = np.bincount((np.array(places) * 100).astype(int), minlength=100)

    distance = ((counts - 1000.0) ** 2 / 1000.0).sum()
    assert len(counts) == 100
    assert 0.001 < chdtrc(99, distance) < 0.999  # neither uneven nor suspiciously even


def test_the_share_is_kept_for_small_and_for_large_ones() -> None:
    for share in (0.01, 0.1, 0.5, 0.9):
        experiment = Experiment("newtext", "a", "b", share=share)
        treated = sum(experiment.assign(user, "r").arm is Arm.TREATMENT for user in range(20_000))
        assert abs(treated - 20_000 * share) < 4 * np.sqrt(20_000 * share * (1 - share))


def test_two_experiments_cut_across_each_other() -> None:
    first = np.array([place_of("one", user) < 0.5 for user in range(100_000)])
    second = np.array([place_of("two", user) < 0.5 for user in range(100_000)])

    assert abs((first & second).sum() - 25_000) < 4 * np.sqrt(100_000 * 0.25 * 0.75)


@given(ids, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_moves_only_those_between_the_shares(user, share, other) -> None:
    low, high = sorted((share, other))
    before = Experiment("x", "a", "b", share=low).assign(user, "r").arm
    after = Experiment("x", "a", "b", share=high).assign(user, "r").arm

    if low <= place_of("x", user) < high:
        assert (before, after) == (Arm.CONTROL, Arm.TREATMENT)
    else:
        assert before is after


@given(ids, st.text(max_size=9), st.text(max_size=9))
def test_a_user_keeps_the_arm_from_request_to_request(user, one, other) -> None:
    assert SPLIT.assign(user, one) == SPLIT.assign(user, other)


def test_nobody_and_everybody_are_shares_too() -> None:
    for user in range(1000):
        assert Experiment("x", "a", "b", share=0.0).assign(user, "r").arm is Arm.CONTROL
        assert Experiment("x", "a", "b", share=1.0).assign(user, "r").arm is Arm.TREATMENT
        assert Experiment("x", "a", "b", share=0.0, mode="interleave").assign(user, "r") is None


def test_who_has_no_id_is_assigned_by_request_and_marked_so() -> None:
    labels = [SPLIT.assign(None, f"r-{number}") for number in range(1000)]

    assert {label.unit for label in labels} == {"request"}
    assert 400 < sum(label.arm is Arm.TREATMENT for label in labels) < 600
    assert SPLIT.assign("u", "r-1").unit == "user"
    assert SPLIT.assign(None, "r-1") == labels[1]


def test_the_seed_of_a_draft_says_nothing_of_the_assignment() -> None:
    requests = [f"r-{number}" for number in range(20_000)]
    treated = np.array([SPLIT.assign(None, each).arm is Arm.TREATMENT for each in requests])
    high = np.array([SPLIT.seed(each) >= 2**62 for each in requests])

    assert abs((treated & high).sum() - treated.sum() / 2) < 4 * np.sqrt(treated.sum() / 4)
    assert SPLIT.seed("r-1") != Experiment("other", "a", "b").seed("r-1")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": ""}, "name"),
        ({"name": "a:b"}, "name"),
        ({"name": "x" * 33}, "name"),
        ({"name": "new\n"}, "name"),
        ({"control": "b"}, "two different"),
        ({"treatment": "b c"}, "treatment"),
        ({"share": 1.1}, "share"),
        ({"share": -0.1}, "share"),
        ({"share": float("nan")}, "share"),
        ({"mode": "both"}, "mode"),
        ({"salt": "a\0b"}, "salt"),
        ({"salt": "s" * 257}, "salt"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said) -> None:
    with pytest.raises(RecsysError, match=said) as failure:
        Experiment(**{"name": "x", "control": "a", "treatment": "b", **settings})

    assert (failure.value.code, failure.value.exit_code) == ("experiment_invalid", 78)


def test_settings_are_read_from_a_file(tmp_path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('name = "x"\ncontrol = "a"\ntreatment = "b"\nshare = 1\nmode = "interleave"\n')

    experiment = load_experiment(file)

    assert experiment == Experiment("x", "a", "b", 1.0, "interleave")
    assert str(experiment.assign(7, "r")) == "x:interleaved:user:1.0:"


@pytest.mark.parametrize(
    "text",
    [
        b'name = "x"\ncontrol = "a"\ntreatment = "b"\nshares = 0.1',
        b'name = "x"\ncontrol = "a"',
        b'name = "x"\ncontrol = "a"\ntreatment = "b"\nshare = "half"',
        b'name = "x"\ncontrol = "a"\ntreatment = "b"\nshare = 7',
        b"name = ",
        b'name = "\xff"',
        None,
    ],
)
def test_a_file_that_holds_no_experiment_is_refused_by_its_name(tmp_path, text) -> None:
    file = tmp_path / "experiment.toml"
    if text is not None:
        file.write_bytes(text)

    with pytest.raises(RecsysError) as failure:
        load_experiment(file)

    assert (failure.value.code, failure.value.where) == ("experiment_invalid", str(file))


@given(names, st.floats(0, 1), st.sampled_from(["user", "request"]), st.sampled_from(list(Arm)), st.data())
def test_a_label_comes_back_from_its_text(name, share, unit, arm, data) -> None:
    picks = st.tuples(ids, st.sampled_from([Arm.CONTROL, Arm.TREATMENT]))
    teams = str(Teams.of(data.draw(st.lists(picks, max_size=70)))) if arm is Arm.INTERLEAVED else ""
    label = Label(name, arm, unit, share, teams)

    assert Label.parse(str(label)) == label
    assert len(str(label)) <= LONGEST_ID


@pytest.mark.parametrize(
    "text",
    [
        "", "B", "a:b:c:d", "x:control:user", "x:control:user:2.0", "x:control:user:0.50",
        "x:control:user:0.5:", "x:control:user:0.5:AA", "x:interleaved:user:0.5",
        "x:interleaved:user:0.5:A", "x:interleaved:user:0.5:+/", "x:interleaved:user:0.5:éé",
        "x:control:user:--", "x:control:user:0.5\n", "x y:control:user:0.5", "x:control:user:nan",
        "x:both:user:0.5",
    ],
)  # fmt: skip
def test_texts_of_other_programs_are_no_labels(text) -> None:
    assert Label.parse(text) is None


def test_the_longest_label_passes_the_intake_and_comes_back_from_the_log() -> None:
    teams = Teams.of([(f"item-{place}", Arm.TREATMENT) for place in range(MOST_PLACES + 30)])
    label = Label("n" * 32, Arm.INTERLEAVED, "request", 0.12345678901234568, str(teams))
    raw = {
        "kind": "impression", "event_id": "r-1", "user_id": 1, "timestamp": AS_OF, "shown": [1],
        "arm": str(label),
    }  # fmt: skip

    good, rejected = check_events([raw], AS_OF)

    assert not rejected
    assert Label.parse(event_of(good[0][2]).arm) == label


def test_each_user_gets_the_list_of_the_assigned_model_and_its_label(models) -> None:
    arms = set()
    for user in USERS:
        got = answered(models, SPLIT, user)
        label = Label.parse(got.arm)
        own = recommend(models[label.arm], RecommendRequest(user_id=user, k=10), AS_OF)
        arms.add(label.arm)

        assert (got.items, got.model) == (own.items, own.model)
        assert label == SPLIT.assign(user, "r-1")
    assert arms == {Arm.CONTROL, Arm.TREATMENT}


def test_users_outside_an_interleaving_get_the_control_without_a_label(models) -> None:
    nobody = Experiment("x", "champion", "challenger", share=0.0, mode="interleave")

    got = answered(models, nobody, "u01")

    assert got == recommend(models[Arm.CONTROL], RecommendRequest(user_id="u01", k=10), AS_OF)
    assert got.arm is None


def test_an_interleaved_answer_is_a_whole_list_of_both_models(models) -> None:
    mixed = 0
    for user in USERS:
        got = answered(models, DRAFT, user)
        lists = {
            arm: ids_of(recommend(models[arm], RecommendRequest(user_id=user, k=10), AS_OF)) for arm in models
        }
        teams = Teams.parse(Label.parse(got.arm).teams)
        sides = [teams.find(item, place) for place, item in enumerate(ids_of(got))]

        assert len(set(ids_of(got))) == 10
        assert all(item in lists[side] for item, side in zip(ids_of(got), sides, strict=True))
        assert sides.count(Arm.CONTROL) == sides.count(Arm.TREATMENT) == 5
        assert [item.rank for item in got.items] == list(range(1, 11))
        assert [item.score for item in got.items] == [1 / rank for rank in range(1, 11)]
        assert got.model.alias == "champion"
        assert got == answered(models, DRAFT, user)
        mixed += set(ids_of(got)) not in (set(lists[Arm.CONTROL]), set(lists[Arm.TREATMENT]))
    assert mixed > 10  # the two versions do differ


def test_interleaved_candidates_are_those_that_came_each_once(models) -> None:
    candidates = ["i05", "i07", "i05", "unheard-of", "i39", "i11"]
    request = RankRequest(user_id="u03", candidates=candidates)

    got = answer_in(DRAFT, "u03", "r-9", None, lambda arm: rank(models[arm], request, AS_OF))

    assert sorted(ids_of(got)) == sorted(set(candidates))


def failing(models, code, arm=Arm.TREATMENT):
    def ask(asked):
        if asked is arm:
            raise Refusal(code)
        return recommend(models[asked], RecommendRequest(user_id="u01", k=5), AS_OF)

    return ask


def test_a_treatment_that_fails_costs_no_answer_and_hides_nothing(models) -> None:
    everybody = Experiment("x", "champion", "challenger", share=1.0)

    split = answer_in(everybody, "u01", "r-1", 5, failing(models, "internal_failure"))
    draft = answer_in(DRAFT, "u01", "r-1", 5, failing(models, "internal_failure"))

    for got in (split, draft):
        assert got.items == recommend(models[Arm.CONTROL], RecommendRequest(user_id="u01", k=5), AS_OF).items
        assert (got.degraded, got.degraded_reason) == (True, "model_failing")
    assert Label.parse(split.arm).arm is Arm.TREATMENT
    assert draft.arm is None


@pytest.mark.parametrize(("code", "arm"), [("overloaded", Arm.TREATMENT), ("internal_failure", Arm.CONTROL)])
def test_other_refusals_reach_the_client(models, code, arm) -> None:
    with pytest.raises(Refusal) as refusal:
        answer_in(DRAFT, "u01", "r-1", 5, failing(models, code, arm))

    assert refusal.value.code == code
