import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch

from lightning_compress.distillation.hidden_states import Embeddings, HiddenStates
from lightning_compress.distillation.objective import Losses, Objective
from lightning_compress.distillation.outputs import RequestedOutputs, TopK, run_with_outputs
from lightning_compress.distillation.soft_targets import SoftTargets
from lightning_compress.distillation.teacher import (
    LiveTeacher,
    TopKConfig,
    cache_folder,
    cached_teacher,
    fingerprint,
    freeze_,
)
from lightning_compress.errors import InputError
from lightning_compress.tasks.language_modeling import next_token_labels
from lightning_compress.types import IGNORE_INDEX

IDS = np.arange(30, 34)
# Rows and length of batches that differ from those the cache was written from.
BATCHES = [([0, 1, 2, 3], 9), ([3, 0, 2], 7), ([1], 9), ([2, 2, 0], 12), ([3, 1, 0, 2], 14)]
WANTED = RequestedOutputs(hidden=frozenset([0, 1]), embedding=True)
MODELS = [("bert", False), ("albert", False), ("gpt2", False), ("gpt2", True), ("llama", True)]
TOKENWISE = TopKConfig(top_k=5, temperatures=[2.0, 0.5])


def remembered(teacher, texts, folder, requested=WANTED, top_k_config=None):
    def batches():
        yield texts([2, 0], length=6)
        yield texts([3, 1], length=9)

    return cached_teacher(teacher, batches, IDS, folder, requested, top_k_config)


def close(one, other, **options):
    return torch.allclose(one.double(), other.double(), **{"rtol": 1e-6, "atol": 1e-6, **options})


@pytest.mark.parametrize(("family", "tokens"), MODELS)
def test_cached_outputs_equal_those_of_the_teacher(
    with_random_weights, texts, tmp_path, family, tokens
):
    live = LiveTeacher(with_random_weights(family, tokens=tokens))
    cached = remembered(live, texts, tmp_path / "x", top_k_config=TOKENWISE if tokens else None)
    for rows, length in BATCHES:
        batch = texts(rows, length=length)
        live_outputs, kept = live(batch, WANTED), cached(batch, WANTED)
        assert torch.equal(kept.mask, live_outputs.mask)
        if tokens:
            assert_largest(kept.logits, live_outputs.logits, live_outputs.mask)
        else:
            assert kept.logits.dtype == torch.float32
            assert close(kept.logits, live_outputs.logits)
        assert close(kept.embedding, live_outputs.embedding)
        assert kept.hidden.keys() == live_outputs.hidden.keys() == {0, 1}
        for layer, states in live_outputs.hidden.items():
            assert kept.hidden[layer].dtype == torch.float16
            assert kept.hidden[layer].shape == states.shape
            pair = kept.hidden[layer][live_outputs.mask], states[live_outputs.mask]
            assert close(*pair, rtol=2**-11, atol=2**-24)
            assert (kept.hidden[layer][~live_outputs.mask] == 0).all()


def assert_largest(kept, whole, mask):
    assert isinstance(kept, TopK)
    values, indices = whole.topk(5)
    assert kept.values.shape == kept.indices.shape == values.shape
    assert close(kept.values[mask], values[mask])
    assert torch.equal(kept.indices[mask].long(), indices[mask])
    assert kept.logsumexp.keys() == {0.5, 1.0, 2.0}
    for temperature, found in kept.logsumexp.items():
        assert found.shape == whole.shape[:2]
        assert close(found[mask], (whole / temperature).logsumexp(-1)[mask])


def test_topk_larger_than_the_vocabulary_keeps_all_logits(with_random_weights, texts, tmp_path):
    live = LiveTeacher(with_random_weights("gpt2", tokens=True))
    cached = remembered(live, texts, tmp_path / "x", RequestedOutputs(), TopKConfig(1000, [1]))
    kept: Any = cached(texts(), RequestedOutputs())
    live_outputs: Any = live(texts(), RequestedOutputs())
    assert kept.logits.values.shape == (4, 9, 100)
    assert kept.logits.logsumexp.keys() == {1.0}
    back = torch.zeros(4, 9, 100).scatter(-1, kept.logits.indices.long(), kept.logits.values)
    assert close(back[live_outputs.mask], live_outputs.logits[live_outputs.mask])


@pytest.mark.parametrize("tokens", [False, True])
def test_cached_and_live_teachers_give_equal_gradients(
    with_random_weights, texts, tmp_path, tokens
):
    student, teacher = (with_random_weights("gpt2", seed=seed, tokens=tokens) for seed in (2, 3))
    live = LiveTeacher(teacher)
    losses = Losses(
        soft_targets=SoftTargets(temperature=2.0),
        hidden_states=HiddenStates(layers="last"),
        embeddings=Embeddings(),
    )
    objective = Objective(losses, student, teacher, "categorical", causal=tokens)
    own, its = objective.requested(2)
    cached = remembered(
        live, texts, tmp_path / "x", its, TopKConfig(100, [2.0]) if tokens else None
    )
    for rows, length in BATCHES:
        batch = texts(rows, length=length)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
        terms = [
            objective(
                run_with_outputs(student, batch, own),
                one(batch, its),
                depth=2,
                progress=0.0,
                target_mask=next_token_labels(labels) != IGNORE_INDEX if tokens else None,
            )
            for one in (live, cached)
        ]
        for name, term in terms[0].items():
            relative = 1e-3 if name == "hidden_states" else 1e-5
            assert terms[1][name].item() == pytest.approx(term.item(), rel=relative), name


def test_the_teacher_runs_once_per_example(with_random_weights, texts, tmp_path, caplog):
    live = LiveTeacher(with_random_weights("bert"))
    first: Any = remembered(live, texts, tmp_path / "x")(texts(), WANTED).logits

    def never():
        raise AssertionError("the teacher was asked again")

    again: Any = cached_teacher(live, never, IDS, tmp_path / "x", WANTED, None)(texts(), WANTED)
    assert torch.equal(again.logits, first)
    # and anew where the folder is damaged
    rows = next(file for file in (tmp_path / "x").iterdir() if file.suffix == ".arrow")
    damaged = bytearray(rows.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    rows.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        anew: Any = remembered(live, texts, tmp_path / "x")(texts(), WANTED)
    assert "written again" in caplog.text
    assert torch.equal(anew.logits, first)


def test_a_layer_missing_in_the_cache_raises_with_its_name(with_random_weights, texts, tmp_path):
    cached = remembered(
        LiveTeacher(with_random_weights("bert")),
        texts,
        tmp_path / "x",
        RequestedOutputs(hidden=frozenset([1])),
    )
    cached(texts(), RequestedOutputs(hidden=frozenset([1])))
    with pytest.raises(InputError, match=r"layer 0, which is not cached.*model\.teacher_cache to"):
        cached(texts(), RequestedOutputs(hidden=frozenset([0, 1])))


def test_an_example_missing_in_the_cache_raises(with_random_weights, texts, tmp_path):
    cached = remembered(LiveTeacher(with_random_weights("bert")), texts, tmp_path / "x")
    batch = {**texts(), "example_id": torch.tensor([30, 31, 32, 77])}
    with pytest.raises(InputError, match="does not hold 1 of 4 examples, 77"):
        cached(batch, WANTED)


def test_without_a_mask_all_are_tokens(with_random_weights, texts, tmp_path):
    cached = remembered(LiveTeacher(with_random_weights("bert")), texts, tmp_path / "x")
    batch = {name: value for name, value in texts([1]).items() if name != "attention_mask"}
    assert cached(batch, WANTED).mask.tolist() == [[True] * 9]


def test_a_teacher_is_without_gradients_and_in_eval_mode(with_random_weights, texts, tmp_path):
    model = with_random_weights("bert").train()
    freeze_(model)
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())
    model.requires_grad_(True)  # even then
    live = LiveTeacher(model)
    whole = RequestedOutputs(frozenset([0, 1]), frozenset([0, 1]), embedding=True)
    live_outputs = live(texts(), whole)
    tensors: list[Any] = [
        live_outputs.logits,
        live_outputs.embedding,
        *live_outputs.hidden.values(),
    ]
    tensors += [
        part for one in live_outputs.attention.values() for part in (one.query, one.key, one.value)
    ]
    assert len(tensors) == 10
    assert not any(tensor.requires_grad for tensor in tensors)


def test_a_teacher_may_read_the_batch_in_its_own_tokens(with_random_weights, texts, tmp_path):
    model = with_random_weights("bert")
    others = {"input_ids": torch.tensor([[7, 8, 9, 0]] * 4), "attention_mask": torch.ones(4, 4)}

    def inputs(batch):
        # The fourth example has its own length too.
        mask = (torch.arange(4) < torch.where(batch["example_id"] == 33, 4, 3)[:, None]).long()
        return {name: value[: len(mask)] for name, value in others.items()} | {
            "attention_mask": mask
        }

    live, requested = LiveTeacher(model, inputs), RequestedOutputs(embedding=True)
    live_outputs: Any = live(texts(), requested)
    plain: Any = run_with_outputs(model, inputs(texts()), requested)
    assert torch.equal(live_outputs.logits, plain.logits)
    assert not close(live_outputs.logits, LiveTeacher(model)(texts(), requested).logits)
    cached = remembered(live, texts, tmp_path / "x", requested)
    for rows, length in BATCHES:
        batch = texts(rows, length=length)
        live_outputs, kept = live(batch, requested), cached(batch, requested)
        assert close(kept.logits, live_outputs.logits)
        assert close(kept.embedding, live_outputs.embedding)


def changed(model, change):
    other = copy.deepcopy(model)
    change(other)
    return other


def nudge(name, place):
    def change(model):
        with torch.no_grad():
            weight = model.get_parameter(name).view(-1)
            weight[place] = torch.nextafter(weight[place], torch.tensor(9.0, dtype=weight.dtype))

    return change


@pytest.mark.parametrize(
    "change",
    [
        nudge("classifier.bias", 0),
        nudge("bert.embeddings.word_embeddings.weight", -1),
        lambda model: setattr(model.config, "hidden_act", "relu"),
        lambda model: setattr(model.config, "layer_norm_eps", 1e-5),
        lambda model: setattr(model.config, "id2label", {0: "yes", 1: "no"}),
        lambda model: model.bfloat16(),
    ],
    ids=["a weight", "another", "activation", "epsilon", "labels", "precision"],
)
def test_another_teacher_has_another_fingerprint(with_random_weights, change):
    model = with_random_weights("bert")
    assert fingerprint(changed(model, change)) != fingerprint(model)


def test_the_same_teacher_has_the_same_fingerprint_wherever_it_lies(with_random_weights, tmp_path):
    model = with_random_weights("bert").float()
    assert fingerprint(copy.deepcopy(model)) == fingerprint(model)
    found = set()
    for name in ("one", "other"):
        model.save_pretrained(tmp_path / name)
        found.add(fingerprint(type(model).from_pretrained(tmp_path / name)))
    assert len(found) == 1
    again = type(model).from_pretrained(tmp_path / "one").train()
    assert {fingerprint(again)} == found
    LiveTeacher(again.eval())({"input_ids": torch.tensor([[5, 6]])}, WANTED)  # asking is no change
    freeze_(again)
    assert {fingerprint(again)} == found


def test_the_folder_is_named_after_all_that_the_answers_depend_on(with_random_weights, tmp_path):
    live = LiveTeacher(with_random_weights("bert"))
    usual: dict[str, Any] = {
        "requested": RequestedOutputs(hidden=frozenset([0, 1])),
        "top_k_config": TopKConfig(5, [1.0, 2.0]),
        "key": {"data": ["a", "b"], "more": 1},
    }
    first = cache_folder(live, tmp_path, **usual)
    assert first.parent == tmp_path / "teacher"
    same: list[dict[str, Any]] = [
        {"requested": RequestedOutputs(hidden=frozenset([1, 0]))},
        {"top_k_config": TopKConfig(5, (2.0, 1.0))},
        {"key": {"more": 1, "data": ["a", "b"]}},
    ]
    for change in ({}, *same):
        assert cache_folder(live, tmp_path, **{**usual, **change}) == first
    others: list[dict[str, Any]] = [
        {"requested": RequestedOutputs(hidden=frozenset([0]))},
        {"requested": RequestedOutputs(hidden=frozenset([0, 1]), embedding=True)},
        {"top_k_config": None},
        {"top_k_config": TopKConfig(6, [1.0, 2.0])},
        {"top_k_config": TopKConfig(5, [1.0, 3.0])},
        {"key": {"data": ["b", "a"], "more": 1}},
        {"key": {"data": ["a", "b"], "more": 2}},
        {"key": {"data": ["a", "b"]}},
    ]
    found = {cache_folder(live, tmp_path, **{**usual, **change}) for change in others}
    found.add(cache_folder(LiveTeacher(with_random_weights("bert", seed=3)), tmp_path, **usual))
    assert len(found | {first}) == len(others) + 2
    assert cache_folder(live, tmp_path / "y", **usual) == tmp_path / "y" / "teacher" / first.name
