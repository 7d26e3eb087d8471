"""Recipes: read as they are written, refused with what is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.compression.recipe import METHODS, RUNTIMES, parse_recipe
from recsys.compression.settings import LADDER, PARTS, CompressionConfig


@pytest.mark.parametrize("text", LADDER)
def test_every_rung_of_the_default_ladder_reads_back(text):
    assert str(parse_recipe(text)) == text


def test_a_recipe_without_a_runtime_is_compiled_to_int8():
    assert str(parse_recipe(" layers=2 , vocabulary=2")) == "layers=2,vocabulary=2,int8"


def test_parents_lead_back_to_the_root():
    names = ["layers=2,vocabulary=2,int8-aware,int8"]
    while parent := parse_recipe(names[-1]).parent:
        names.append(parent)
    assert names[1:] == ["layers=2,vocabulary=2,int8", "layers=2,int8", "int8", "fp32"]


@pytest.mark.parametrize("text", ["prune=3,int8", "layers,int8", "layers=2,int4", "int8,layers=2"])
def test_an_unknown_method_is_refused_with_all_that_are_known(text):
    with pytest.raises(ValueError, match="unknown method") as refused:
        parse_recipe(text)
    assert all(name in str(refused.value) for name in (*METHODS, *RUNTIMES))


@given(st.sampled_from(sorted(METHODS)), st.floats(allow_nan=True))
def test_a_value_is_taken_exactly_where_it_is_in_range(name, value):
    method = METHODS[name]
    good = method.low <= value <= method.high and (not method.whole or value == int(value))
    text = f"{name}={value!r},{'static' if name == 'pairs' else 'int8'}"
    if good:
        assert parse_recipe(text).value_of(name) == value
    else:
        with pytest.raises(ValueError, match=f"{name} must be") as refused:
            parse_recipe(text)
        assert method.allowed in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "layers=2,static",
        "int8-aware,bf16",
        "exit=0.5,layers=2,int8",
        "exit=0.5,onnx-int8",
        "word-rank=64,vocabulary=2,int8",
        "pairs=100,int8",
        "pairs=100,vocabulary=1,static",
    ],
)
def test_steps_that_cannot_follow_each_other_are_refused(text):
    with pytest.raises(ValueError, match=r"static|int8-aware|exit|vocabulary|pairs"):
        parse_recipe(text)


def test_settings_refuse_what_could_not_be_built_or_met():
    for wrong in (
        {"ladder": ("layers=0,int8",)},
        {"limits": {"quality": 0.9}},
        {"limits": {"explanation_fidelity_min": 1.5}},
        {"requests": 0},
        {"speed_rounds": 0},
    ):
        with pytest.raises(ValueError, match=r"must|unknown"):
            CompressionConfig(**wrong)
    assert CompressionConfig(limits={"quality_min_ratio": float("-inf")}).parts == PARTS
