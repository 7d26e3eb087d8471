"""The modes of adaptation: what each trains and how much, what it makes of a text, and how it is merged."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipelines.config import load_config
from recsys.errors import EXIT_CONFIG, RecsysError
from recsys.events import lengths_to_offsets
from recsys.next_items import NextItems
from recsys.relevance import RelevanceHead
from recsys.relevance_examples import Examples
from recsys.relevance_weights import HeadConfig
from recsys.requests import HistoryBatch, Requests
from recsys.text.adapters import equip, merged
from recsys.text.contrastive import contrast
from recsys.text.finetuning import Behaviour, adapt, finetune
from recsys.text.prompts import PrefixedLayer
from recsys.text.runtime import plan_batches
from recsys.text.settings import MODES, FinetuneConfig
from recsys.text.text_in_training import EncodedTexts, TextInTraining
from recsys.text.tokenization import pad_batch
from recsys.text.torch_runtime import TorchEncoder

WORDS = torch.tensor([11, 23, 42])
LAYERS, DIM, NEURONS, RANK = 4, 32, 64, 2
TRAINED = {
    "frozen": 0,
    "lora": LAYERS * 2 * 2 * DIM * RANK,  # query and value, two factors
    "ia3": LAYERS * (DIM + DIM + NEURONS),  # keys, values, neurons
    "prompt": len(WORDS) * DIM,
    "prefix": LAYERS * 2 * len(WORDS) * DIM,  # keys and values
}
PARTS = {
    "full": "layers.",
    "lora": ".lora_",
    "ia3": ".ia3_l.",
    "prompt": "words.prompt",
    "prefix": ".prefix",
}
CONFIG = FinetuneConfig(
    max_steps=3,
    batch_size=8,
    max_texts=16,
    lora_rank=RANK,
    prompt_length=len(WORDS),
    head=HeadConfig(embedding_dim=8, hidden_dim=4, history_limit=12),
)
REQUESTS, EVENTS, SLATE = 40, 3, 4


def equipped(teacher, mode):
    return equip(copy.deepcopy(teacher.transformer), replace(CONFIG, mode=mode), WORDS)


def perturbed(teacher, mode):
    """A model whose trained weights have gone some way."""
    model, weights = equipped(teacher, mode)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def encoded(model, tokenizer, texts):
    out = np.zeros((len(texts), DIM), np.float32)
    with torch.inference_mode():
        for rows, input_ids, mask in plan_batches(tokenizer.encode(texts)):
            out[rows] = model(torch.from_numpy(input_ids), torch.from_numpy(mask)).numpy()
    return out


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_trains_the_known_number_of_weights(mode, tiny_teacher):
    _, weights = equipped(tiny_teacher, mode)
    layers = sum(weight.numel() for weight in tiny_teacher.transformer.layers.parameters())
    assert sum(weight.numel() for weight in weights) == TRAINED.get(mode, layers)


@pytest.mark.parametrize("mode", list(PARTS))
def test_only_what_the_mode_trains_moves(mode, tiny_teacher, made_up_texts):
    model, weights = equipped(tiny_teacher, mode)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    tokens = tiny_teacher.tokenizer.encode(made_up_texts[:8])
    input_ids, mask = map(torch.from_numpy, pad_batch(tokens, 32))
    target = functional.normalize(torch.ones(DIM), dim=0)
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(2):  # the first step leaves one factor of LoRA where it is
        optimizer.zero_grad()
        torch.autograd.backward(-(model.train()(input_ids, mask) @ target).mean())
        optimizer.step()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if PARTS[mode] in name}


@pytest.mark.parametrize("mode", ["frozen", "full", "lora", "ia3"])
def test_what_can_be_merged_starts_as_the_student(mode, tiny_teacher, made_up_texts):
    model, _ = equipped(tiny_teacher, mode)
    student = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer).encode(made_up_texts[:20])
    made = encoded(model.eval(), tiny_teacher.tokenizer, made_up_texts[:20])
    np.testing.assert_allclose(made, student, atol=1e-6)


def test_ia3_merges_exactly(tiny_teacher, made_up_texts):
    model = perturbed(tiny_teacher, "ia3")
    adapted = encoded(model, tiny_teacher.tokenizer, made_up_texts[:50])
    plain = merged(model)
    assert set(plain.state_dict()) == set(tiny_teacher.transformer.state_dict())
    again = TorchEncoder(plain, tiny_teacher.tokenizer).encode(made_up_texts[:50])
    student = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer).encode(made_up_texts[:50])
    np.testing.assert_allclose(again, adapted, atol=1e-5)
    assert np.abs(again - student).max() > 1e-3


@pytest.mark.parametrize("mode", ["prompt", "prefix"])
def test_virtual_tokens_cannot_be_merged(mode, tiny_teacher):
    with pytest.raises(ValueError, match="virtual tokens"):
        merged(equipped(tiny_teacher, mode)[0])


@pytest.mark.parametrize("mode", ["prompt", "prefix"])
def test_with_virtual_tokens_batch_mates_do_not_matter(mode, tiny_teacher, made_up_texts):
    model = perturbed(tiny_teacher, mode)
    tokens = tiny_teacher.tokenizer.encode(["lamp", *made_up_texts[:3]])
    together_ids, together_mask = map(torch.from_numpy, pad_batch(tokens, max(map(len, tokens))))
    with torch.inference_mode():
        together = model(together_ids, together_mask)
        for row, ids in enumerate(tokens):
            alone = model(*map(torch.from_numpy, pad_batch([ids], len(ids))))
            np.testing.assert_allclose(together[row], alone[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_a_prompt_stands_before_the_words_and_out_of_the_mean(tiny_teacher):
    model = perturbed(tiny_teacher, "prompt")
    student, prompt = tiny_teacher.transformer, model.model.words.prompt
    ids = torch.tensor([[2, 11, 12, 13, 3]])
    with torch.inference_mode():
        words = student.words(ids[0]) + student.positions.weight[:5]
        hidden = student.norm(torch.cat([prompt, words])[None])
        for layer in student.layers:
            hidden = layer(hidden, torch.zeros(1, 1, 1, 8))
        wanted = functional.normalize(hidden[0, 3:].mean(0), dim=0)
        made = model(ids, torch.ones_like(ids))[0]
    np.testing.assert_allclose(made, wanted, atol=1e-6)


def test_the_longest_text_still_has_its_positions(tiny_teacher):
    model, _ = equipped(tiny_teacher, "prompt")
    ids = torch.full((1, tiny_teacher.transformer.architecture.positions), 11)
    assert model.eval()(ids, torch.ones_like(ids)).shape == (1, DIM)


@pytest.mark.parametrize("training", [False, True])
def test_prefixes_are_keys_and_values_that_every_token_sees(training, tiny_teacher):
    generator = torch.Generator().manual_seed(3)
    hidden, keys, values = (torch.randn(size, DIM, generator=generator) for size in (5, 3, 3))
    plain = tiny_teacher.transformer.layers[0]
    prefixed = PrefixedLayer(copy.deepcopy(plain), keys, values).train(training)
    attend = torch.zeros(1, 1, 1, 5)
    attend[..., 4] = torch.finfo(torch.float32).min  # the last token is padding
    with torch.no_grad():
        key = torch.cat([keys, plain.key(hidden)[:4]]).view(7, 4, 8)
        value = torch.cat([values, plain.value(hidden)[:4]]).view(7, 4, 8)
        query = plain.query(hidden).view(5, 4, 8)
        heads = [torch.softmax(query[:, h] @ key[:, h].T / 8**0.5, 1) @ value[:, h] for h in range(4)]
        middle = plain.attention_norm(hidden + plain.attention_out(torch.cat(heads, 1)))
        wanted = plain.output_norm(middle + plain.contract(functional.gelu(plain.expand(middle))))
        made = prefixed(hidden[None], attend)[0]
    np.testing.assert_allclose(made[:4], wanted[:4], atol=1e-5)


def test_prefixes_start_as_keys_and_values_of_words(tiny_teacher):
    model, _ = equipped(tiny_teacher, "prefix")
    student, hidden = tiny_teacher.transformer, None
    with torch.no_grad():
        hidden = student.norm(student.words(WORDS) + student.positions.weight[:3])[None]
        for layer, plain in zip(model.layers, student.layers, strict=True):
            np.testing.assert_allclose(layer.layer.key.prefix, plain.key(hidden)[0], atol=1e-5)
            np.testing.assert_allclose(layer.layer.value.prefix, plain.value(hidden)[0], atol=1e-5)
            hidden = plain(hidden, torch.zeros(1, 1, 1, 3))


def test_a_mode_that_is_unknown_is_refused_by_the_configuration():
    for mode in MODES:
        assert load_config(None, [f"finetuning.mode={mode}"]).finetuning.mode == mode
    with pytest.raises(RecsysError) as refused:
        load_config(None, ["finetuning.mode=bitfit"])
    assert (refused.value.code, refused.value.exit_code) == ("config_invalid", EXIT_CONFIG)
    assert refused.value.where == "finetuning.mode"


@pytest.fixture(scope="module")
def catalogue(tiny_teacher, made_up_texts):
    encoder = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer)
    texts = [*made_up_texts, ""]  # the last item has no word
    return EncodedTexts(texts, encoder.encode(texts))


@pytest.fixture(scope="module")
def behaviour(catalogue):
    rng = np.random.default_rng(0)
    items = rng.integers(0, len(catalogue.texts), (REQUESTS, SLATE)).astype(np.int32)
    label = np.zeros(items.shape, np.float32)
    label[np.arange(REQUESTS), rng.integers(0, SLATE, REQUESTS)] = 1.0
    offsets = lengths_to_offsets(np.full(REQUESTS, SLATE))
    requests = Requests.of(
        np.arange(REQUESTS), np.arange(REQUESTS), np.zeros(REQUESTS), (offsets, items.ravel())
    )
    history = HistoryBatch(
        lengths_to_offsets(np.full(REQUESTS, EVENTS)),
        rng.integers(0, len(catalogue.texts), REQUESTS * EVENTS).astype(np.int32),
        np.zeros(REQUESTS * EVENTS, np.int32),
        np.full(REQUESTS * EVENTS, 3600.0),
    )
    examples = Examples(requests.labelled(label.ravel()), np.ones(items.size, np.float32))
    return Behaviour(examples, history, np.ones(1, np.float32))


def trained(teacher, catalogue, lesson, judging, mode, **settings):
    config = replace(CONFIG, mode=mode, **settings)
    text = TextInTraining(teacher.transformer, teacher.tokenizer, catalogue, config)
    head = RelevanceHead.untrained(catalogue.embeddings, lesson.type_weights, config.head)
    return adapt(text, head, lesson, judging), text


def test_every_mode_learns_beyond_the_head_and_leaves_the_student_alone(tiny_teacher, catalogue, behaviour):
    before = copy.deepcopy(tiny_teacher.transformer.state_dict())
    lesson, judging = behaviour.take(np.arange(30)), behaviour.take(np.arange(30, 40))
    logits = {}
    for mode in MODES:
        made, _ = trained(tiny_teacher, catalogue, lesson, judging, mode)
        again, _ = trained(tiny_teacher, catalogue, lesson, judging, mode)
        assert made.logits.tobytes() == again.logits.tobytes()
        assert np.isfinite(made.logits).all()
        assert made.cpu_seconds > 0
        assert (made.parameters == 0) == (mode == "frozen")
        logits[mode] = made.logits
    assert all(np.abs(logits[mode] - logits["frozen"]).max() > 1e-6 for mode in MODES if mode != "frozen")
    after = tiny_teacher.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_judges_does_not_teach(tiny_teacher, catalogue, behaviour):
    lesson, judging = behaviour.take(np.arange(30)), behaviour.take(np.arange(30, 40))
    requests = judging.examples.requests
    other = replace(
        judging, examples=replace(judging.examples, requests=requests.labelled(1.0 - requests.label))
    )
    one, two = (trained(tiny_teacher, catalogue, lesson, some, "ia3")[0] for some in (judging, other))
    assert one.logits.tobytes() == two.logits.tobytes()


def test_virtual_tokens_start_as_the_most_common_words(tiny_teacher):
    texts = ["lamp", "a red lamp", "the red violin", "a lamp", ""]
    catalogue = EncodedTexts(texts, np.zeros((5, DIM), np.float32))
    config = replace(CONFIG, mode="prompt", prompt_length=2)
    text = TextInTraining(tiny_teacher.transformer, tiny_teacher.tokenizer, catalogue, config)
    text.equip()
    lamp, a = (tiny_teacher.tokenizer.encode([word])[0][1] for word in ("lamp", "a"))
    wanted = tiny_teacher.transformer.words.weight[[lamp, a]]
    assert torch.equal(text.model.model.words.prompt, wanted)


def test_nothing_to_learn_from_is_refused(tiny_teacher, catalogue, behaviour):
    with pytest.raises(ValueError, match="no request"):
        trained(tiny_teacher, catalogue, behaviour.take(np.arange(0)), behaviour, "lora")


@pytest.mark.parametrize("mode", ["prompt", "prefix"])
def test_fine_tuning_refuses_what_gives_no_encoder(mode, tiny_teacher, catalogue, behaviour):
    config = replace(CONFIG, mode=mode)
    requests = behaviour.examples.requests
    pairs = NextItems(
        requests, behaviour.history, np.ones(REQUESTS * EVENTS), np.zeros((REQUESTS, 0), np.int32)
    )
    for learn, lesson in ((finetune, behaviour), (contrast, pairs)):
        with pytest.raises(RecsysError, match="comparison of adaptations only") as refused:
            learn(tiny_teacher.transformer, tiny_teacher.tokenizer, catalogue, lesson, config)
        assert (refused.value.code, refused.value.where) == ("config_invalid", "finetuning.mode")
        assert refused.value.exit_code == EXIT_CONFIG
