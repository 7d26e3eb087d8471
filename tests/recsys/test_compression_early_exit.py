"""The early exit on the tiny teacher: who leaves and what they get; no influence of batch mates; files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch

from recsys.bundle import read_bundle, write_bundle
from recsys.compression.early_exit import early_exit, exit_step, fit_ridge, spared_share
from recsys.compression.projection import project
from recsys.compression.receipt import operations
from recsys.compression.sharing import share_layers
from recsys.compression.variant import Variant
from recsys.errors import RecsysError
from recsys.text.exit_runtime import ALWAYS, NEVER, ExitEncoder
from recsys.text.quantization import build_encoder, mean_cosine
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import LayerShape, TextTransformer

LAYER = 2
SHARE = 0.35
BLANK = ["", "  \n"]


@pytest.fixture(scope="module")
def variant(tiny_teacher) -> Variant:
    return Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def mixed(made_up_texts) -> list[str]:
    """Different texts of many lengths in a random order."""
    cut = {
        text[: 10 + (31 * row + step) % 80] for row, text in enumerate(made_up_texts) for step in (0, 23, 57)
    }
    return [str(text) for text in np.random.default_rng(0).permutation(sorted(cut))]


@pytest.fixture(scope="module")
def texts(mixed) -> list[str]:
    """To fit on."""
    return mixed[::2]


@pytest.fixture(scope="module")
def held(mixed) -> list[str]:
    """That nothing was fitted on."""
    return mixed[1::2]


@pytest.fixture(scope="module")
def exiting(variant, texts):
    """An encoder of the tiny model with an exit."""

    def build(share: float, precision: str) -> ExitEncoder:
        return early_exit(variant, texts, layer=LAYER, share=share, precision=precision, threads=1)

    return build


@pytest.fixture(scope="module")
def encoders(exiting) -> dict[str, ExitEncoder]:
    """By precision; about a third of the texts leaves."""
    return {precision: exiting(SHARE, precision) for precision in ("fp32", "bf16", "int8")}


@pytest.fixture(scope="module")
def third(encoders) -> ExitEncoder:
    return encoders["fp32"]


@pytest.fixture(scope="module")
def none(exiting) -> ExitEncoder:
    return exiting(0, "fp32")


@pytest.fixture(scope="module")
def everyone(exiting) -> ExitEncoder:
    return exiting(1, "fp32")


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.einsum("td,td->t", ours, theirs)


def test_without_an_exit_it_is_the_plain_encoder(none, tiny_encoder, held):
    assert none.exit_share(held) == 0.0
    np.testing.assert_allclose(none.encode(held), tiny_encoder.encode(held), atol=1e-6)


def test_where_all_leave_the_rest_never_runs(variant, everyone, none, texts, held):
    """Another network's rest changes nothing then, and everything where all go on."""
    other = TextTransformer(variant.transformer.architecture)
    other.load_state_dict(variant.transformer.state_dict())
    with torch.no_grad():
        other.weighted_layers[-1].contract.weight.neg_()
    changed = replace(variant, transformer=other.eval())
    stranger = early_exit(changed, texts, layer=LAYER, share=1, precision="fp32", threads=1).to_files()
    rest = {name: stranger[name] for name in ("exit_rest.xml", "exit_rest.bin")}
    assert everyone.exit_share(held) == 1.0
    mixed = ExitEncoder.from_files(everyone.to_files() | rest)
    np.testing.assert_array_equal(mixed.encode(held), everyone.encode(held))
    mixed = ExitEncoder.from_files(none.to_files() | rest)
    assert (cosines(mixed.encode(held), none.encode(held)) < 0.99).any()


def test_the_share_moves_the_threshold_alone(none, everyone, third):
    assert (none.config.threshold, everyone.config.threshold) == (NEVER, ALWAYS)
    files = third.to_files()
    for encoder in (none, everyone):
        assert encoder.encoder_id != third.encoder_id
        again = encoder.with_threshold(third.config.threshold)
        assert again.to_files() == files
        assert again.encoder_id == third.encoder_id


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_who_leaves_gets_the_early_embedding_and_the_others_the_full_one(encoders, texts, precision):
    encoder = encoders[precision]
    assert encoder.config.precision == precision
    leaving = encoder.leaving(texts)
    np.testing.assert_array_equal(leaving, encoder.estimates(texts) >= encoder.config.threshold)
    assert 0.2 < leaving.mean() < 0.6
    early, full = (encoder.with_threshold(end).encode(texts) for end in (ALWAYS, NEVER))
    expected = np.where(leaving[:, None], early, full)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1.0, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_embedding_does_not_depend_on_batch_mates(encoders, texts, precision, rng):
    encoder = encoders[precision]
    some = [*texts[:62], *BLANK]
    together = encoder.encode(some)
    alone = np.concatenate([encoder.encode([text]) for text in some])
    order = rng.permutation(len(some))
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(encoder.encode([some[row] for row in order]), together[order], atol=1e-6)
    np.testing.assert_allclose(encoder.encode(some * 40)[-64:], together, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_about_the_wanted_share_of_new_texts_leaves(encoders, held, precision):
    encoder = encoders[precision]
    assert encoder.exit_share(held) == pytest.approx(SHARE, abs=0.1)
    assert encoder.exit_share([*held, *BLANK]) == encoder.exit_share(held)
    assert len(set(encoder.estimates(held).tolist())) > 0.9 * len(held)


def test_the_estimate_knows_new_texts_that_leave_well(third, texts, held):
    early, full = (third.with_threshold(end).encode(held) for end in (ALWAYS, NEVER))
    reached, estimates = cosines(early, full), third.estimates(held)
    assert estimates.mean() == pytest.approx(reached.mean(), abs=0.02)
    assert np.corrcoef(estimates, reached)[0, 1] > 0.3
    leaving = third.leaving(held)
    assert reached[leaving].mean() > reached[~leaving].mean()
    assert cosines(third.encode(held), full).mean() > reached.mean()


def test_layers_that_do_nothing_are_left_out_without_loss(variant, texts, held):
    """Behind the exit only norms of what is normed already: the map is all but the identity."""
    shape = variant.transformer.architecture
    idle = TextTransformer(replace(shape, layers=(*shape.layers[:2], LayerShape(0, 0), LayerShape(0, 0))))
    idle.load_state_dict(variant.transformer.state_dict(), strict=False)
    made = early_exit(
        replace(variant, transformer=idle.eval()), texts, layer=2, cosine=0.999, precision="fp32"
    )
    early, full = (made.with_threshold(end).encode(held) for end in (ALWAYS, NEVER))
    assert cosines(early, full).min() > 0.999
    assert made.config.threshold == pytest.approx(made.estimates(held).min(), abs=0.01)


def test_a_wanted_cosine_is_kept_by_those_who_leave(variant, texts, held, third):
    early, full = (third.with_threshold(end).encode(held) for end in (ALWAYS, NEVER))
    reached = cosines(early, full)
    wanted = float(np.quantile(reached, 0.6))
    made = early_exit(variant, texts, layer=LAYER, cosine=wanted, precision="fp32", threads=1)
    leaving = made.leaving(held)
    assert 0.05 < leaving.mean() < 0.95
    assert reached[leaving].mean() == pytest.approx(wanted, abs=0.01)


def test_ridge_is_that_of_least_error_without_each_row(rng):
    """Against as many fits as rows: the same left-out values, and no other strength misses less."""
    inputs = rng.normal(size=(24, 5)) * [1.0, 10.0, 0.1, 1.0, 1.0] + 3.0
    wanted = inputs @ rng.normal(size=(5, 2)) + rng.normal(size=(24, 2))
    found = fit_ridge(inputs, wanted)
    scaled = (inputs - inputs.mean(0)) / inputs.std(0)
    columns = np.concatenate([scaled, np.ones((24, 1))], axis=1)

    def fitted(rows: np.ndarray, ridge: float) -> np.ndarray:
        penalty = ridge * 24 * np.diag([1.0] * 5 + [0.0])
        return np.linalg.solve(columns[rows].T @ columns[rows] + penalty, columns[rows].T @ wanted[rows])

    everyone = np.arange(24)
    naive = {
        ridge: np.stack([columns[row] @ fitted(np.delete(everyone, row), ridge) for row in everyone])
        for ridge in (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    }
    best = min(naive, key=lambda ridge: np.square(naive[ridge] - wanted).sum())
    np.testing.assert_allclose(found.left_out, naive[best], atol=1e-8)
    np.testing.assert_allclose(
        inputs @ found.weight + found.bias, columns @ fitted(everyone, best), atol=1e-8
    )


def test_a_text_without_a_word_is_zero_and_neither_leaves_nor_counts(third):
    assert not third.encode(BLANK).any()
    assert np.isnan(third.estimates(BLANK)).all()
    assert not third.leaving(BLANK).any()
    assert math.isnan(third.exit_share(BLANK))
    assert third.encode([]).shape == (0, 32)
    assert math.isnan(third.exit_share([]))


def test_other_methods_come_before_it(variant, texts, held):
    projected, shared = project(variant, texts, dims=12), share_layers(variant)
    for made, wanted in ((projected, {"cosine": 1.0}), (shared, {"share": 0.5})):
        encoder = early_exit(made, texts, layer=3, precision="fp32", threads=1, **wanted)
        plain = TorchEncoder(made.transformer, made.tokenizer)
        full = encoder.with_threshold(NEVER)
        np.testing.assert_allclose(full.encode(held), plain.encode(held), atol=1e-5)
        assert mean_cosine(encoder, plain, held) > 0.9
        assert ("cosine" in wanted) == (encoder.encoder_id == full.encoder_id)


def test_int8_stays_close_to_fp32(encoders, texts, variant):
    plain = build_encoder(variant.transformer, variant.tokenizer, [], precision="fp32", threads=1)
    assert mean_cosine(encoders["int8"].with_threshold(NEVER), plain, texts) > 0.99
    ends = (encoders[precision].with_threshold(ALWAYS) for precision in ("int8", "fp32"))
    assert mean_cosine(*ends, texts) > 0.99
    small, large = (len(encoders[precision].to_files()["exit_rest.bin"]) for precision in ("int8", "fp32"))
    assert small < large / 2


def test_spared_operations_by_hand(variant, third, texts):
    shape = variant.transformer.architecture
    text = texts[0]
    tokens = len(variant.tokenizer.encode([text])[0])
    head = 2 * 32 * 32 + 2 * 33
    whole, part = operations(shape, tokens), operations(replace(shape, layers=shape.layers[:LAYER]), tokens)
    for end, expected in ((ALWAYS, 1 - (part + head) / whole), (NEVER, -head / whole)):
        assert spared_share(variant, third.with_threshold(end), [text, ""]) == pytest.approx(expected)
    ends = [spared_share(variant, third.with_threshold(end), texts) for end in (NEVER, ALWAYS)]
    assert ends[0] < spared_share(variant, third, texts) < ends[1]
    assert math.isnan(spared_share(variant, third, BLANK))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer": 0, "share": 0.5}, r"layer must lie in 1\.\.3"),
        ({"layer": 4, "share": 0.5}, r"layer must lie in 1\.\.3"),
        ({"layer": 2, "share": 1.5}, r"share must lie in 0\.\.1"),
        ({"layer": 2, "share": -0.1}, r"share must lie in 0\.\.1"),
        ({"layer": 2, "share": float("nan")}, r"share must lie in 0\.\.1"),
        ({"layer": 2, "cosine": 1.1}, r"cosine must lie in -1\.\.1"),
        ({"layer": 2}, "one of share and cosine"),
        ({"layer": 2, "share": 0.5, "cosine": 0.9}, "one of share and cosine"),
    ],
)
def test_what_cannot_be_done_is_refused(variant, texts, settings, words):
    with pytest.raises(ValueError, match=words):
        early_exit(variant, texts, **settings)


def test_too_few_texts_are_refused(variant, texts, third):
    with pytest.raises(ValueError, match="20 different texts at least, not 3"):
        early_exit(variant, [*texts[:3] * 20, *BLANK], layer=2, share=0.5)
    with pytest.raises(ValueError, match="threshold nan"):
        third.with_threshold(float("nan"))


def test_the_step_of_a_recipe_has_layer_and_percent():
    assert [exit_step(3, share) for share in (0.5, 1.0, 0.125)] == ["exit-3-50", "exit-3-100", "exit-3-12.5"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_encoder_survives_a_bundle_bit_for_bit(encoders, texts, precision, tmp_path):
    encoder = encoders[precision]
    metadata = {"name": "exit", "as_of": 0.0, "feature_schema": ""}
    write_bundle(tmp_path / "bundle", encoder.to_files(), metadata)
    again = ExitEncoder.from_files(read_bundle(tmp_path / "bundle").files, threads=2)
    assert again.to_files() == encoder.to_files()
    assert (again.config, again.encoder_id, again.dim) == (encoder.config, encoder.encoder_id, 32)
    np.testing.assert_array_equal(again.encode(texts), encoder.encode(texts))


def test_several_threads_may_call_it_and_its_siblings(third, texts):
    both = [third, third.with_threshold(NEVER)]
    expected = [encoder.encode(texts) for encoder in both]
    wrong = []

    def work(place: int) -> None:
        if not np.array_equal(both[place].encode(texts), expected[place]):
            wrong.append(place)

    threads = [Thread(target=work, args=(number % 2,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def changed(**values: object):
    def change(files: dict[str, bytes]) -> None:
        files["exit.json"] = json.dumps(json.loads(files["exit.json"]) | values).encode()

    return change


@pytest.mark.parametrize(
    "damage",
    [
        *(
            lambda files, name=name: files.pop(name)
            for name in ("exit_first.xml", "exit_rest.bin", "tokenizer.json", "exit.json")
        ),
        lambda files: files.update({"exit_first.xml": b"<net"}),
        lambda files: files.update({"exit_rest.xml": files["exit_rest.xml"][:500]}),
        lambda files: files.update({"exit_first.bin": files["exit_first.bin"][:100]}),
        lambda files: files.update({"exit_rest.bin": b""}),
        lambda files: files.update({"tokenizer.json": b"{}"}),
        lambda files: files.update({"exit.json": b"[]"}),
        lambda files: files.update(
            {f"exit_first.{kind}": files[f"exit_rest.{kind}"] for kind in ("xml", "bin")}
        ),
        lambda files: files.update(
            {f"exit_rest.{kind}": files[f"exit_first.{kind}"] for kind in ("xml", "bin")}
        ),
        changed(dim=31),
        changed(dim="32"),
        changed(layer=0),
        changed(max_tokens=True),
        changed(threshold=float("nan")),
        changed(threshold=float("inf")),
        changed(threshold="0.9"),
        changed(threshold=None),
        changed(precision="int4"),
        changed(extra=1),
    ],
)
def test_damaged_files_are_refused(third, damage):
    files = third.to_files()
    damage(files)
    with pytest.raises(RecsysError, match="encoder_invalid"):
        ExitEncoder.from_files(files)


def test_serving_path_imports_no_torch():
    script = (
        "import sys, recsys.text.exit_runtime\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'nncf', 'openvino_telemetry.main'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
