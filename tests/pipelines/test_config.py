"""The configuration: what wins over what, and how a wrong key or value is refused."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from pipelines.config import DEFAULT_GATES, Config, load_config
from recsys.errors import RecsysError
from recsys.events import DEFAULT_ROLES, EventRole
from recsys.reranking import Rule


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recsys.toml"
    path.write_text(
        "seed = 1\n[ranker]\nleaves = 11\nrounds = 12\npatience = 13\n[collaborative]\nhalf_life_days = 90\n"
    )
    return path


def refusal(overrides: tuple[str, ...] = (), path: Path | None = None, **environment: str) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        load_config(path, overrides, environment)
    assert (caught.value.code, caught.value.exit_code) == ("config_invalid", 78)
    return caught.value


def test_without_anything_the_defaults_hold():
    assert load_config() == Config()


def test_override_wins_over_environment_over_file_over_default(file):
    environment = {"RECSYS__RANKER__ROUNDS": "22", "RECSYS__RANKER__PATIENCE": "23", "PATH": "/bin"}
    config = load_config(file, ["ranker.patience=33"], environment)
    ranker = config.ranker
    assert (ranker.leaves, ranker.rounds, ranker.patience) == (11, 22, 33)
    assert (config.seed, config.collaborative.half_life_days) == (1, 90.0)
    assert ranker.learning_rate == Config().ranker.learning_rate


def test_the_last_override_of_a_key_wins():
    assert load_config(overrides=["seed=1", " seed = 2 "]).seed == 2


def test_values_are_toml_and_a_bare_word_is_text():
    config = load_config(
        overrides=["text.precision=bf16", 'text.teacher="a=b"', "retrieval.exclude_seen=false", "seed=0x10"]
    )
    assert (config.text.precision, config.text.teacher) == ("bf16", "a=b")
    assert config.retrieval.exclude_seen is False
    assert config.seed == 16


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("rankr.leaves=3", "rankr"),
        ("ranker.leafs=3", "ranker.leafs"),
        ("roles.view.wight=3", "roles.view.wight"),
        ("ranker.leaves=many", "ranker.leaves"),
        ("ranker.leaves=1.5", "ranker.leaves"),
        ("ranker=3", "ranker"),
        ("seed.x=3", "seed"),
        ("roles=3", "roles"),
        ("roles.view=3", "roles.view"),
        ("roles.view.weight=x", "roles.view.weight"),
        ("gates=3", "gates"),
        ("gates.auc_min=high", "gates.auc_min"),
        ("text.precision=int4", "text.precision"),
        ("=3", ""),
        ("ranker.leaves", "ranker.leaves"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(override, key):
    assert refusal((override,)).where == key


def test_an_unknown_key_says_which_are_known():
    assert "known here: " in refusal(("ranker.leafs=3",)).what
    assert "learning_rate, leaves, min_data_in_leaf" in refusal(("ranker.leafs=3",)).what


def test_a_value_where_a_section_belongs_is_refused(file):
    file.write_text("ranker = 3\n")
    assert refusal(("ranker.leaves=3",), file).where == "ranker"


def test_environment_variables_are_refused_like_all_else():
    assert refusal(RECSYS__RANKER__LEAFS="3").where == "ranker.leafs"
    assert refusal(RECSYS__="3").code == "config_invalid"


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"seed = 1\nseed = 2"])
def test_a_damaged_file_is_refused_by_name(file, content):
    file.write_bytes(content)
    assert refusal(path=file).where == str(file)


def test_a_missing_file_is_refused_by_name(tmp_path):
    assert refusal(path=tmp_path / "none.toml").where == str(tmp_path / "none.toml")


def test_unknown_keys_of_a_file_are_refused_too(file):
    file.write_text("[head]\nepoch = 3\n")
    assert refusal(path=file).where == "head.epoch"


def test_a_role_is_laid_over_its_default_key_by_key():
    config = load_config(overrides=["roles.view.weight=0.5", "roles.listen.weight=4"])
    assert config.roles["view"] == EventRole(0.5, target=False)
    assert config.roles["listen"] == EventRole(4.0)
    assert list(config.roles) == [*DEFAULT_ROLES, "listen"]  # type indices of the defaults do not move
    assert config.roles["click"] == DEFAULT_ROLES["click"]


def test_one_gate_does_not_open_the_others():
    assert load_config(overrides=["gates.auc_min=0.6"]).gates == {**DEFAULT_GATES, "auc_min": 0.6}
    opened = load_config(overrides=["gates.lift_over_popularity_min=-inf"]).gates
    assert opened["lift_over_popularity_min"] == float("-inf")


def test_loading_changes_no_default():
    load_config(overrides=["roles.view.weight=9", "gates.auc_min=1"])
    assert load_config() == Config()
    assert DEFAULT_ROLES["view"].weight == 0.1


def test_flat_names_every_setting_as_text(file):
    flat = load_config(file).flat()
    assert flat["ranker.leaves"] == "11"
    assert flat["text.precision"] == "int8"
    assert flat["collaborative.half_life_days"] == "90.0"
    assert flat["roles.dismiss.negative"] == "true"
    assert all(isinstance(value, str) for value in flat.values())


def test_every_component_is_frozen_and_its_settings_are_documented():
    for entry in fields(Config):
        part = getattr(Config(), entry.name)
        if is_dataclass(part):
            assert type(part).__dataclass_params__.frozen, entry.name
            documented = type(part).__doc__ or ""
            for setting in fields(part):
                assert setting.name in documented, f"{entry.name}.{setting.name}"


def test_a_flat_configuration_can_be_read_back_as_overrides():
    config = load_config(overrides=["ranker.leaves=5", "text.teacher=folder/of mine", "head.seed=4"])
    words = [f"{key}={value}" for key, value in config.flat().items() if value != "null"]
    assert load_config(overrides=words) == config
    json.dumps(config.flat())


def test_rules_are_a_list_of_tables_and_each_key_is_known(file):
    file.write_text(
        "[reranking.diversity]\nrelevance_share = 0.7\n"
        '[[reranking.rules]]\naction = "boost"\nfield = "category"\nequals = "news"\nby = 0.5\n'
        '[[reranking.rules]]\naction = "cap"\nfield = "category"\nby = 2\n'
    )
    reranking = load_config(file).reranking
    assert reranking.diversity.relevance_share == 0.7
    assert reranking.rules == (
        Rule("boost", "category", equals="news", by=0.5),
        Rule("cap", "category", by=2),
    )
    assert Config().reranking.is_off
    wrong = refusal(('reranking.rules=[{action="cap", fild="category"}]',))
    assert wrong.where == "reranking.rules[0].fild"
    assert "known here: above, action" in wrong.what
    wrong = refusal(('reranking.rules=[{action="promote", field="category"}]',))
    assert "'boost', 'bury', 'filter' or 'cap'" in wrong.what
    assert refusal(("reranking.exploration.share=1.5",)).where == "reranking.exploration"
