"""The comparison counts what is in the log in any order, and finds what was planted and nothing else."""

from __future__ import annotations

import json
import math
import random
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from recsys.errors import RecsysError
from serving.commands.compare import compare as compare_command
from serving.commands.compare import compared
from serving.events.log import Record
from serving.events.parsing import check_events
from serving.events.redis_log import RedisLog
from serving.events.sqlite_log import SqliteLog
from serving.events.sqlite_reader import SqliteReader
from serving.experiments.comparison import LEAST_USERS, compare
from serving.experiments.experiment import Arm, Experiment, Label
from serving.experiments.figures import ratio_test, sign_test
from serving.experiments.interleaving import Teams, team_draft
from serving.experiments.logged import Slate, read_experiments

C, T = Arm.CONTROL, Arm.TREATMENT
NOW = 1.7e9
SPLIT = Experiment("newtext", "champion", "challenger")
DRAFT = Experiment("draft", "champion", "challenger", share=1.0, mode="interleave")


def shown(event_id, user, items, label, at=NOW):
    return {
        "kind": "impression", "event_id": event_id, "user_id": user, "timestamp": at, "shown": list(items),
        "arm": None if label is None else str(label),
    }  # fmt: skip


def acted(event_id, user, item, impression, kind="click", at=NOW):
    return {
        "event_id": event_id, "user_id": user, "item_id": item, "event_type": kind, "timestamp": at,
        "impression_id": impression,
    }  # fmt: skip


def records(raw):
    good, rejected = check_events(list(raw), NOW)
    assert not rejected
    return [record for _, _, record in good]


def write(folder, raw):
    """A real log with these events; its path."""
    path = folder / "events.db"
    log = SqliteLog(path, reserve_bytes=0, durability="os")
    log.append(records(raw))
    log.close()
    return path


def read(folder, raw, **options):
    return compared(SqliteReader(write(folder, raw)), **options)


def control(share=0.5, unit="user"):
    return Label("x", C, unit, share)


def treatment(share=0.5, unit="user"):
    return Label("x", T, unit, share)


def drafted(control, treatment, k=4, seed=1, name="x"):
    """Items and label of an interleaved list."""
    picks = team_draft(control, treatment, k, seed=seed)
    label = Label(name, Arm.INTERLEAVED, "user", 1.0, str(Teams.of(picks)))
    return [item for item, _ in picks], label, dict(picks)


HAND = [
    shown("i1", 1, "abc", control()),  # two items, one of them three times
    acted("e1", 1, "a", "i1"),
    acted("e2", 1, "a", "i1"),
    acted("e3", 1, "a", "i1", "purchase"),
    acted("e4", 1, "c", "i1"),
    shown("i2", 1, "abc", control()),  # nothing
    shown("i3", 2, "ab", control()),  # an item that was not shown, a view, an impression that is not there
    acted("e5", 2, "z", "i3"),
    acted("e6", 2, "a", "i3", "view"),
    acted("e7", 2, "a", "i9"),
    acted("e8", 2, "a", None),
    shown("i4", 3, "ab", treatment()),
    acted("e9", 3, "b", "i4"),
    shown("i5", "4", [7, 8], treatment()),  # ids as numbers and as texts
    acted("e10", 4, "7", "i5"),
    shown("i6", 4, [7, 8], treatment()),
    shown("i7", 5, "ab", None),  # of no experiment
    acted("e11", 5, "a", "i7"),
    shown("i8", 6, "ab", "variant-b"),  # of somebody else's
]


def test_a_split_counts_what_a_hand_counts(tmp_path) -> None:
    document = read(tmp_path, HAND)
    figures = document["experiments"][0].figures

    assert (figures.control.users, figures.control.acting) == (2, 1)
    assert (figures.control.impressions, figures.control.outcomes) == (3, 2)
    assert figures.control.rate.mean == 1 / 2 * (2 / 2 + 0 / 1)
    assert (figures.treatment.users, figures.treatment.acting) == (2, 2)
    assert (figures.treatment.impressions, figures.treatment.outcomes) == (3, 2)
    assert figures.treatment.rate.mean == 1 / 2 * (1 / 1 + 1 / 2)
    assert figures.difference.mean == 3 / 4 - 1 / 2
    assert figures.lift == (3 / 4 - 1 / 2) / (1 / 2)
    assert figures.ratio_p == 1.0
    assert document["outcomes"] == 10
    assert (document["outcomes_joined"], document["outcomes_not_shown"]) == (6, 1)
    assert document["experiments"][0].winner is None  # four users say nothing


def test_outcomes_are_the_types_that_are_asked_for(tmp_path) -> None:
    views = read(tmp_path, HAND, outcomes=["view", "purchase"])

    figures = views["experiments"][0].figures
    assert (views["outcomes"], views["outcomes_joined"]) == (2, 2)
    assert (figures.control.outcomes, figures.treatment.outcomes) == (2, 0)


def test_a_draft_counts_what_a_hand_counts(tmp_path) -> None:
    items, label, team = drafted("abcd", "wxyz")
    ours = [item for item in items if team[item] is C]
    theirs = [item for item in items if team[item] is T]
    raw = [shown(f"i{number}", number // 2, items, label) for number in range(8)]
    raw += [
        acted("e1", 0, theirs[0], "i0"),  # user 0: treatment, treatment
        acted("e2", 0, theirs[0], "i1"),
        acted("e3", 0, theirs[1], "i1"),
        acted("e4", 0, ours[0], "i1"),
        acted("e5", 1, ours[1], "i2"),  # user 1: control, a tie of one each
        acted("e6", 1, ours[0], "i3"),
        acted("e7", 1, theirs[0], "i3"),
        acted("e8", 2, ours[0], "i4"),  # user 2: control, treatment
        acted("e9", 2, theirs[1], "i5"),
    ]

    figures = read(tmp_path, raw)["experiments"][0].figures

    assert (figures.users, figures.impressions, figures.ties) == (4, 8, 3)
    assert figures.wins == {C: 2, T: 3}
    assert figures.share.mean == 3 / 5
    assert figures.users_for == {C: 1, T: 1}
    assert (figures.sign_p, figures.uncredited) == (1.0, 0)


def test_a_shorter_or_filtered_list_keeps_its_teams(tmp_path) -> None:
    items, label, team = drafted([f"c{n}" for n in range(6)], [f"t{n}" for n in range(6)], k=6)
    clicked = items[3]
    raw = [
        shown("i1", 1, items[:4], label),
        acted("e1", 1, clicked, "i1"),
        shown("i2", 2, items[1:], label),
        acted("e2", 2, clicked, "i2"),
        shown("i3", 3, [*items, "advert"], label),
        acted("e3", 3, "advert", "i3"),
    ]

    got = read(tmp_path, raw)["experiments"][0]

    assert got.figures.wins[team[clicked]] == 2
    assert (got.figures.ties, got.figures.uncredited) == (1, 1)
    assert got.warnings == ["1 outcomes are of items that neither side placed"]


def test_tests_have_the_p_values_of_the_tables() -> None:
    assert ratio_test((50, 50), (0.5, 0.5)) == 1.0
    assert ratio_test((60, 40), (0.5, 0.5)) == pytest.approx(0.0455, abs=1e-4)  # chi-square 4
    assert ratio_test((920, 80), (0.9, 0.1)) == pytest.approx(0.0350, abs=1e-4)  # 400/900 + 400/100
    assert math.isnan(ratio_test((0, 0), (0.5, 0.5)))
    assert math.isnan(ratio_test((10, 0), (1.0, 0.0)))
    assert sign_test(5, 0) == 2 / 2**5
    assert sign_test(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)
    assert (sign_test(4, 4), sign_test(0, 0)) == (1.0, 1.0)


def simulated(seed, users, rates, experiment=SPLIT):
    """Impressions of users of whom everyone has a rate of their own, around that of the arm."""
    rng = np.random.default_rng(seed)
    slates = []
    for user in range(users):
        label = experiment.assign(f"{seed}/{user}", "r")
        taste = rng.lognormal(-0.18, 0.6)
        for number in range(1 + rng.poisson(3)):
            hit = rng.random() < rates[label.arm] * taste
            acts = frozenset("a") if hit else frozenset()
            slates.append(Slate(f"{user}-{number}", str(user), NOW, label, ("a",), acts))
    return slates


def test_a_planted_difference_is_found_on_its_side_and_none_is_found_without_one() -> None:
    better = [compare(simulated(seed, 600, {C: 0.2, T: 0.3})).winner for seed in range(20)]
    worse = [compare(simulated(seed, 600, {C: 0.3, T: 0.2})).winner for seed in range(20)]
    alike = [compare(simulated(seed, 200, {C: 0.25, T: 0.25})) for seed in range(120)]

    assert better.count(T) >= 18
    assert C not in better
    assert worse.count(C) >= 18
    assert T not in worse
    # 5 % of 120 are 6; a binomial count is above 13 once in 360 times
    assert sum(each.winner is not None for each in alike) <= 13
    assert sum(each.figures.ratio_p < 0.05 for each in alike) <= 13


def drafts(seed, users, attraction, orders):
    """Impressions of users who look at every list from above, and some of whom click a lot."""
    rng = np.random.default_rng(seed)
    slates = []
    for user in range(users):
        eager = rng.lognormal(-0.18, 0.6)
        for number in range(1 + rng.poisson(2)):
            items, label, _ = drafted(*orders, k=8, seed=int(rng.integers(2**62)))
            shows = tuple(map(str, items))
            chances = [attraction[item] * eager / (1 + place / 4) for place, item in enumerate(items)]
            hits = rng.random(len(items)) < chances
            acts = frozenset(item for item, hit in zip(shows, hits, strict=True) if hit)
            slates.append(Slate(f"{user}-{number}", str(user), NOW, label, shows, acts))
    return slates


def test_a_better_list_wins_its_draft_and_an_equal_one_does_not() -> None:
    attraction = np.linspace(0.3, 0.02, 24)
    best, worse = list(range(24)), list(range(23, -1, -1))
    flat = np.full(24, 0.25)
    other = np.random.default_rng(5).permutation(24).tolist()

    ahead = [compare(drafts(seed, 100, attraction, (worse, best))).winner for seed in range(10)]
    behind = [compare(drafts(seed, 100, attraction, (best, worse))).winner for seed in range(10)]
    alike = [compare(drafts(seed, 80, flat, (best, other))) for seed in range(60)]

    assert ahead.count(T) >= 9
    assert behind.count(C) >= 9
    # 5 % of 60 are 3; a binomial count is above 8 once in 350 times
    assert min(sum(each.figures.users_for.values()) for each in alike) >= 2 * LEAST_USERS
    assert sum(each.winner is not None for each in alike) <= 8
    assert sum(each.figures.sign_p < 0.05 for each in alike) <= 8


def test_repeated_impressions_of_one_user_do_not_make_a_winner() -> None:
    items, label, team = drafted("ab", "xy", k=2)
    theirs = next(item for item in items if team[item] is T)
    slates = [
        Slate(
            f"i{number}", str(number % 30), NOW, label, tuple(items), frozenset([theirs] * (number % 30 < 29))
        )
        for number in range(3000)
    ]

    few = compare(slates)
    assert few.figures.users_for[T] == 29
    assert few.winner is None  # 29 users, whatever they do all day


def test_a_missing_side_is_told_by_the_sizes_of_the_groups() -> None:
    slates = simulated(1, 2000, {C: 0.2, T: 0.2})
    dropped = [each for each in slates if each.label.arm is C or int(each.user_id) % 3]

    whole, torn = compare(slates), compare(dropped)

    assert not whole.warnings
    assert torn.figures.ratio_p < 0.001
    assert torn.warnings[0].startswith("sample ratio mismatch: ")


def test_what_was_logged_under_another_share_or_mode_is_left_out_and_told() -> None:
    _, draft, _ = drafted("ab", "cd")
    old = [
        Slate("i1", "1", NOW - 10, treatment(0.1), ("a",)),
        Slate("i2", "2", NOW - 10, control(0.1), ("a",)),
        Slate("i3", "2", NOW - 20, draft, ("a",)),
    ]
    new = [Slate("i4", "2", NOW, treatment(), ("a",)), Slate("i5", "3", NOW - 30, control(), ("a",))]

    got = compare(old + new)

    assert (got.share, got.left_out.earlier, got.left_out.crossed) == (0.5, 3, 0)
    assert repr(got.figures) == repr(compare(new).figures)
    assert got.warnings == ["3 impressions of an earlier share or mode are left out"]


def test_people_who_are_nobody_or_on_both_sides_are_left_out_and_told() -> None:
    slates = simulated(2, 50, {C: 0.3, T: 0.3})
    strangers = [Slate(f"s{n}", f"v{n}", NOW, label(unit="request"), ("a",), frozenset("a")) for n, label in
                 enumerate([control, treatment, treatment])]  # fmt: skip
    crossed = [Slate("x1", "both", NOW, control(), ("a",)), Slate("x2", "both", NOW, treatment(), ("a",))]

    got = compare([*slates, *strangers, *crossed])

    assert (got.left_out.anonymous, got.left_out.crossed) == (3, 2)
    assert len(got.warnings) == 2
    assert replace(got.figures, crossed=0) == compare(slates).figures


def test_one_side_alone_has_no_winner() -> None:
    got = compare([each for each in simulated(3, 300, {C: 0.5, T: 0.5}) if each.label.arm is C])

    assert got.winner is None
    assert math.isnan(got.figures.difference.mean)
    assert got.figures.treatment.users == 0


def logged(user_count):
    """Events of a split and a draft in one log."""
    rng = np.random.default_rng(4)
    raw = []
    for user in range(user_count):
        items, label, _ = drafted(range(6), range(3, 9), k=6, seed=user, name="draft")
        for name, its, mark in (("s", list("abc"), SPLIT.assign(user, "r")), ("d", items, label)):
            raw.append(shown(f"{name}{user}", user, its, mark, NOW - user))
            hits = rng.random(len(its)) < (0.5 if mark.arm is T else 0.3)
            raw += [
                acted(f"{name}{user}-{item}", user, item, f"{name}{user}", at=NOW - rng.random())
                for item, hit in zip(its, hits, strict=True) if hit
            ]  # fmt: skip
    return raw


@settings(max_examples=15)
@given(st.randoms(use_true_random=False))
def test_the_answer_does_not_depend_on_the_order_of_the_log(tmp_path_factory, chance: random.Random) -> None:
    raw = logged(60)
    shuffled = chance.sample(raw, len(raw))

    first, second = (read(tmp_path_factory.mktemp("log"), each) for each in (raw, shuffled))

    assert repr(first) == repr(second)
    assert first["experiments"][0].figures.impressions == 60


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_figures_do_not_depend_on_the_order_of_the_impressions(chance, seed) -> None:
    slates = simulated(seed, 40, {C: 0.3, T: 0.4})

    assert compare(chance.sample(slates, len(slates))) == compare(slates)


def test_events_sent_twice_count_once(tmp_path) -> None:
    path = write(tmp_path, HAND)
    log = SqliteLog(path, reserve_bytes=0, durability="os")
    log.append(records(HAND))
    log.close()

    (tmp_path / "once").mkdir()
    assert repr(compared(SqliteReader(path))) == repr(read(tmp_path / "once", HAND))


def test_a_log_longer_than_a_page_is_read_to_its_end(tmp_path, monkeypatch) -> None:
    raw = logged(60)
    whole = read(tmp_path, raw)
    monkeypatch.setattr("serving.experiments.logged._PAGE", 7)

    assert repr(compared(SqliteReader(tmp_path / "events.db"))) == repr(whole)


def test_records_that_are_no_events_are_counted_and_passed_over(tmp_path) -> None:
    path = write(tmp_path, HAND)
    log = SqliteLog(path, reserve_bytes=0, durability="os")
    odd = Record(
        event_id="odd", kind="impression", digest=bytes(32), event_ts=NOW, ingest_ts=NOW, payload=b"{}"
    )  # fmt: skip
    log.append([odd])
    log.close()

    document = compared(SqliteReader(path))

    assert document["warnings"][-1] == "1 damaged records could not be read"
    assert document["experiments"][0].figures.control.impressions == 3


def command(*words):
    app = typer.Typer(add_completion=False)
    app.command()(compare_command)
    return CliRunner().invoke(app, list(words))


def test_the_command_prints_one_json_object(tmp_path) -> None:
    path = write(tmp_path, logged(400))
    done = command("--log", str(path), "--json")
    document = json.loads(done.stdout)

    assert done.exit_code == 0
    assert [each["name"] for each in document["experiments"]] == ["draft", "newtext"]
    split = document["experiments"][1]
    assert split["mode"] == "split"
    assert split["winner"] == "treatment"
    assert split["figures"]["difference"]["low"] > 0
    assert document["outcomes_joined"] == document["outcomes"]
    assert document["outcome_types"] == ["click", "purchase"]


def test_the_command_prints_null_for_what_is_not_known(tmp_path) -> None:
    path = write(tmp_path, [shown("i1", 1, "ab", control())])
    document = json.loads(command("--log", str(path), "--json").stdout)

    assert document["experiments"][0]["figures"]["difference"] == {"mean": None, "low": None, "high": None}


def test_the_command_prints_tables_and_verdicts(tmp_path) -> None:
    path = write(tmp_path, logged(400))
    text = command("--log", str(path)).stdout

    assert "winner: treatment" in text
    assert "no winner yet" in text
    assert "sign test over users p = " in text
    assert max(map(len, text.splitlines())) <= 120
    only = command("--log", str(path), "--experiment", "draft", "--outcome", "purchase").stdout
    assert "newtext" not in only
    assert "outcome: purchase" in only


def test_clicks_without_an_impression_are_told(tmp_path) -> None:
    raw = [shown("i1", 1, "ab", control()), acted("e1", 1, "a", None)]

    assert "interactions need the impression_id" in command("--log", str(write(tmp_path, raw))).stdout


def test_the_log_of_the_home_is_read_by_default(tmp_path, monkeypatch) -> None:
    write(tmp_path, HAND)
    named = command("--home", str(tmp_path), "--json").stdout
    monkeypatch.setenv("RECSYS_HOME", str(tmp_path))

    assert json.loads(command("--json").stdout)["experiments"][0]["name"] == "x"
    assert command("--json").stdout == named


def test_an_experiment_that_is_not_there_is_refused_and_the_others_are_named(tmp_path) -> None:
    failure = command("--log", str(write(tmp_path, HAND)), "--experiment", "y").exception

    assert isinstance(failure, RecsysError)
    assert (failure.code, failure.exit_code) == ("no_experiment", 66)
    assert failure.what.endswith("it has x")


def test_a_log_without_experiments_and_no_log_are_refused(tmp_path) -> None:
    path = write(tmp_path, [shown("i1", 1, "ab", None)])

    assert command("--log", str(path)).exception.code == "no_experiment"
    assert command("--log", str(tmp_path / "none.db")).exception.code == "no_input"


def test_the_command_loads_nothing_heavy_before_it_runs() -> None:
    code = (
        "import sys, serving.commands.compare; print({'numpy', 'msgspec', 'redis', 'scipy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"


@pytest.fixture
def redis_url():
    """A Redis server of its own."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("no redis-server is installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def wait_for(port):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("redis-server does not answer")


def test_a_log_in_redis_says_the_same(tmp_path, redis_url) -> None:
    log = RedisLog(redis_url)
    log.append(records(logged(60)))
    log.close()

    done = command("--redis", redis_url, "--json")

    assert done.exit_code == 0
    assert done.stdout == command("--log", str(write(tmp_path, logged(60))), "--json").stdout
    assert read_experiments(SqliteReader(tmp_path / "events.db")).unreadable == 0
