import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_compress.distillation.attention import (
    AttentionMaps,
    Relations,
    attention_map_loss,
    relation_loss,
)
from lightning_compress.distillation.hidden_states import (
    Embeddings,
    HiddenStates,
    embedding_loss,
    hidden_state_loss,
)
from lightning_compress.distillation.objective import Losses, Objective, TaskLoss
from lightning_compress.distillation.outputs import (
    Outputs,
    RequestedOutputs,
    TopK,
    depth_of,
    run_with_outputs,
)
from lightning_compress.distillation.soft_targets import SoftTargets, soft_target_loss
from lightning_compress.errors import InputError
from lightning_compress.models import remove_heads_
from lightning_compress.models.layers import remove_layers_
from lightning_compress.tasks.language_modeling import next_token_labels
from lightning_compress.tasks.task import Distribution
from lightning_compress.types import IGNORE_INDEX

# Family, and whether it is a language model.
MODELS = [("bert", False), ("albert", False), ("gpt2", True), ("llama", True), ("gpt2", False)]
CLASSES: Distribution = "categorical"


def everything(family, layers="uniform"):
    """All terms that suit a family."""
    return Losses(
        task=None,
        soft_targets=SoftTargets(),
        hidden_states=HiddenStates(layers=layers),
        attention_maps=None if family == "llama" else AttentionMaps(layers=layers),
        relations=Relations(layers=layers),
        embeddings=Embeddings(),
    )


def made(losses, student, teacher, tokens=False, kind=CLASSES):
    return Objective(losses, student, teacher, kind, causal=tokens).double()


def asked_in(batch):
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
    return next_token_labels(labels) != IGNORE_INDEX


def terms_of(objective, student, teacher, batch, progress=0.0):
    depth = depth_of(student)
    own, its = objective.requested(depth)
    with torch.no_grad():
        teacher_outputs = run_with_outputs(teacher, batch, its)
    return objective(
        run_with_outputs(student, batch, own),
        teacher_outputs,
        depth=depth,
        progress=progress,
        target_mask=asked_in(batch) if objective.causal else None,
    )


def largest_gradient(term, model):
    found = torch.autograd.grad(
        term, list(model.parameters()), retain_graph=True, allow_unused=True
    )
    return max(float(one.abs().max()) for one in found if one is not None)


@pytest.mark.parametrize(("family", "tokens"), MODELS)
def test_every_term_and_its_gradient_vanish_where_the_student_is_the_teacher(
    with_random_weights, texts, family, tokens
):
    teacher = with_random_weights(family, tokens=tokens)
    student, other = copy.deepcopy(teacher), with_random_weights(family, seed=3, tokens=tokens)
    objective = made(everything(family), student, teacher, tokens)
    terms = terms_of(objective, student, teacher, texts())
    assert len(terms) == (4 if family == "llama" else 5)
    for name, term in terms.items():
        assert term.shape == ()
        assert abs(term.item()) < 1e-12, name
        assert largest_gradient(term, student) < 1e-12, name
    for name, term in terms_of(objective, other, teacher, texts()).items():
        assert term.item() > 1e-3, name
        assert largest_gradient(term, other) > 1e-4, name


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_same_holds_for_the_largest_logits_of_a_language_model(
    with_random_weights, texts, temperature
):
    teacher = with_random_weights("gpt2", tokens=True)
    student = copy.deepcopy(teacher)
    losses = Losses(soft_targets=SoftTargets(temperature=temperature))
    objective = made(losses, student, teacher, tokens=True)
    own = run_with_outputs(student, texts(), RequestedOutputs())
    with torch.no_grad():
        whole = teacher(texts()["input_ids"], attention_mask=texts()["attention_mask"]).logits
    values, indices = whole.topk(5)
    some = TopK(values, indices.int(), {temperature: (whole / temperature).logsumexp(-1)})
    its = Outputs(some, own.mask)
    found = objective(own, its, depth=2, progress=0.5, target_mask=asked_in(texts()))
    assert found.keys() == {"soft_targets"}
    assert abs(found["soft_targets"].item()) < 1e-12
    assert largest_gradient(found["soft_targets"], student) < 1e-12


@pytest.mark.parametrize(("family", "tokens"), [*MODELS, ("roberta", False), ("distilbert", False)])
def test_padding_and_the_order_of_a_batch_change_nothing(
    with_random_weights, texts, family, tokens
):
    student, teacher = (with_random_weights(family, seed=seed, tokens=tokens) for seed in (2, 3))
    objective = made(everything(family), student, teacher, tokens)
    found = terms_of(objective, student, teacher, texts())
    longer = texts(length=14)
    assert longer["input_ids"].shape == (4, 14)
    turned = texts([2, 0, 3, 1], length=11)
    for batch in (longer, turned):
        again = terms_of(objective, student, teacher, batch)
        assert again.keys() == found.keys()
        for name, term in again.items():
            assert term.item() == pytest.approx(found[name].item(), rel=1e-9), name


@pytest.mark.parametrize("layers", ["uniform", "last", {0: 2, 1: 0}])
@pytest.mark.parametrize(("family", "tokens"), [("bert", False), ("gpt2", True)])
def test_terms_are_means_over_the_pairs_of_layers(
    with_random_weights, texts, family, tokens, layers
):
    student = with_random_weights(family, tokens=tokens)
    deep = {"num_hidden_layers": 4}
    teacher = with_random_weights(family, seed=3, tokens=tokens, **deep)
    pairs = {"uniform": [(0, 1), (1, 3)], "last": [(1, 3)]}.get(str(layers), [(0, 2), (1, 0)])
    objective = made(everything(family, layers), student, teacher, tokens)
    own: Any = run_with_outputs(
        student, texts(), RequestedOutputs(frozenset([0, 1]), frozenset([0, 1]), True)
    )
    every = frozenset(range(4))
    its: Any = run_with_outputs(teacher, texts(), RequestedOutputs(every, every, embedding=True))
    terms = objective(
        own, its, depth=2, progress=0.0, target_mask=asked_in(texts()) if tokens else None
    )
    mask = texts()["attention_mask"].bool()
    slow = {
        "hidden_states": [hidden_state_loss(own.hidden[a], its.hidden[b], mask) for a, b in pairs],
        "attention_maps": [
            attention_map_loss(own.attention[a], its.attention[b], mask, causal=tokens)
            for a, b in pairs
        ],
        "relations": [
            relation_loss(own.attention[a], its.attention[b], mask, causal=tokens) for a, b in pairs
        ],
        "embeddings": [embedding_loss(own.embedding, its.embedding)],
    }
    places: Any = asked_in(texts()) if tokens else ...
    slow["soft_targets"] = [
        soft_target_loss(
            own.logits[places], its.logits[places], objective.distribution, temperature=2.0
        )
    ]
    assert terms.keys() == slow.keys()
    for name, each in slow.items():
        assert terms[name].item() == pytest.approx(sum(one.item() for one in each) / len(each))


def test_a_language_model_is_taught_where_it_predicts_alone(with_random_weights, texts):
    student, teacher = (with_random_weights("gpt2", seed=seed, tokens=True) for seed in (2, 3))
    objective = made(Losses(task=None), student, teacher, tokens=True)
    found = terms_of(objective, student, teacher, texts())["soft_targets"].item()
    total, count = 0.0, 0
    for row, length in enumerate([4, 9, 6, 7]):
        ids = texts()["input_ids"][row : row + 1, :length]
        with torch.no_grad():
            own, its = student(ids).logits[0], teacher(ids).logits[0]
        for token in range(length - 1):  # the last has no next token
            pair = own[token : token + 1], its[token : token + 1]
            total += float(soft_target_loss(*pair, CLASSES, temperature=2.0))
            count += 1
    assert found == pytest.approx(total / count, rel=1e-9)


def test_the_temperature_follows_the_run_and_hard_targets_do_not(with_random_weights, texts):
    student, teacher = with_random_weights("bert"), with_random_weights("bert", seed=3)
    inputs = {name: texts()[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        own, its = student(**inputs).logits, teacher(**inputs).logits
    for hard in (False, True):
        losses = Losses(soft_targets=SoftTargets(temperature=(4.0, 1.0), hard=hard))
        objective = made(losses, student, teacher)
        for progress, temperature in ((0.0, 4.0), (0.5, 2.5), (1.0, 1.0)):
            found = terms_of(objective, student, teacher, texts(), progress)["soft_targets"]
            expected = soft_target_loss(own, its, CLASSES, temperature=temperature, hard=hard)
            assert found.item() == pytest.approx(float(expected))


def test_weights_follow_the_run(with_random_weights):
    model = with_random_weights("bert")
    losses = Losses(
        task=TaskLoss(weight=(0.0, 1.0)),
        soft_targets=SoftTargets(weight=(1.0, 0.5)),
        hidden_states=HiddenStates(weight=3),
    )
    objective = made(losses, model, model)
    assert objective.weights(0.0) == {"task": 0.0, "soft_targets": 1.0, "hidden_states": 3.0}
    assert objective.weights(0.5) == {"task": 0.5, "soft_targets": 0.75, "hidden_states": 3.0}
    assert objective.weights(1.0) == {"task": 1.0, "soft_targets": 0.5, "hidden_states": 3.0}
    assert made(Losses(), model, model).weights(0.3) == {"task": 0.1, "soft_targets": 0.9}
    assert made(Losses(task=None), model, model).weights(0.3) == {"soft_targets": 0.9}


def test_projections_exist_only_for_different_widths(with_random_weights, texts):
    small, large = with_random_weights("bert", hidden_size=16), with_random_weights("bert", seed=3)
    both = Losses(hidden_states=HiddenStates(), embeddings=Embeddings())
    objective = made(both, small, large)
    assert {name: tuple(w.shape) for name, w in objective.named_parameters()} == {
        "hidden_projection.weight": (32, 16),
        "embedding_projection.weight": (32, 16),
    }
    assert not list(made(Losses(), small, large).parameters())
    assert len(list(made(Losses(embeddings=Embeddings()), small, large).parameters())) == 1
    alike = made(both, large, copy.deepcopy(large))
    assert isinstance(alike.hidden_projection, nn.Identity)
    assert isinstance(alike.embedding_projection, nn.Identity)
    assert not alike.state_dict()


def test_projections_keep_sizes_at_first_and_learn(with_random_weights, texts):
    torch.manual_seed(0)
    small, large = with_random_weights("bert", hidden_size=16), with_random_weights("bert", seed=3)
    losses = Losses(soft_targets=None, hidden_states=HiddenStates(), embeddings=Embeddings())
    objective = made(losses, small, large)
    states = torch.randn(1000, 16, dtype=torch.float64)
    with torch.no_grad():
        size = objective.hidden_projection(states).square().mean() / states.square().mean()
    assert float(size) == pytest.approx(1, abs=0.3)
    small.requires_grad_(False)  # only the projections learn here
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-2)
    history = []
    for _ in range(30):
        terms = terms_of(objective, small, large, texts())
        history.append({name: term.item() for name, term in terms.items()})
        optimizer.zero_grad()
        sum(terms.values()).backward()
        assert all(float(w.grad.abs().max()) > 0 for w in objective.parameters())
        optimizer.step()
    for name in ("hidden_states", "embeddings"):
        assert history[-1][name] < 0.5 * history[0][name]


def test_the_student_learns_through_a_projection(with_random_weights, texts):
    small, large = with_random_weights("bert", hidden_size=16), with_random_weights("bert", seed=3)
    losses = Losses(soft_targets=None, hidden_states=HiddenStates(), embeddings=Embeddings())
    for term in terms_of(made(losses, small, large), small, large, texts()).values():
        assert largest_gradient(term, small) > 1e-4


@pytest.mark.parametrize(("family", "tokens"), [("bert", False), ("gpt2", True)])
def test_maps_follow_a_student_that_loses_layers(with_random_weights, texts, family, tokens):
    deep = {"num_hidden_layers": 4}
    teacher = with_random_weights(family, tokens=tokens, **deep)
    student = copy.deepcopy(teacher)
    objective = made(everything(family), student, teacher, tokens)
    every = frozenset(range(4))
    assert objective.requested(4) == (
        RequestedOutputs(every, every, True),
        RequestedOutputs(every, every, True),
    )
    for term in terms_of(objective, student, teacher, texts()).values():
        assert abs(term.item()) < 1e-12
    remove_layers_(student, [1, 2])
    left, taught = frozenset([0, 1]), frozenset([1, 3])
    assert objective.requested(2) == (
        RequestedOutputs(left, left, True),
        RequestedOutputs(taught, taught, True),
    )
    found = terms_of(objective, student, teacher, texts())
    inputs = {name: texts()[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        own, its = (
            one(**inputs, output_hidden_states=True).hidden_states for one in (student, teacher)
        )
    mask = inputs["attention_mask"].bool()
    expected = [hidden_state_loss(own[a], its[b], mask) for a, b in ((1, 2), (2, 4))]
    assert found["hidden_states"].item() == pytest.approx(float(sum(expected)) / 2)
    assert found["hidden_states"].item() > 1e-3
    # What came before the layers that left is as it was.
    last = made(everything(family, {0: 0}), student, teacher, tokens)
    again = terms_of(last, student, teacher, texts())
    for name in ("hidden_states", "attention_maps", "relations"):
        assert abs(again[name].item()) < 1e-12


def test_an_explicit_layer_map_with_a_removed_layer_raises(with_random_weights):
    teacher = with_random_weights("bert")
    student = copy.deepcopy(teacher)
    objective = made(everything("bert", {1: 1}), student, teacher)
    remove_layers_(student, [0])
    with pytest.raises(InputError, match="layer 1 of the student, which has layers 0 to 0"):
        objective.requested(depth_of(student))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "albert"])
def test_relations_work_after_head_removal(with_random_weights, texts, family):
    teacher = with_random_weights(family)
    student = copy.deepcopy(teacher)
    objective = made(
        Losses(soft_targets=None, relations=Relations(layers="uniform")), student, teacher
    )
    remove_heads_(student, {0: [1]})
    (term,) = terms_of(objective, student, teacher, texts()).values()
    assert term.item() > 1e-4
    assert largest_gradient(term, student) > 1e-6


def test_only_outputs_that_the_terms_use_are_requested(with_random_weights):
    model = with_random_weights("bert")
    nothing = RequestedOutputs()
    assert made(Losses(), model, model).requested(2) == (nothing, nothing)
    last = RequestedOutputs(frozenset([1]))
    losses = Losses(hidden_states=HiddenStates(layers="last"))
    assert made(losses, model, model).requested(2) == (last, last)
    losses = Losses(attention_maps=AttentionMaps(layers={0: 1}), relations=Relations(layers={1: 0}))
    both = RequestedOutputs(attention=frozenset([0, 1]))
    assert made(losses, model, model).requested(2) == (both, both)
    whole = RequestedOutputs(embedding=True)
    assert made(Losses(embeddings=Embeddings()), model, model).requested(2) == (whole, whole)


@pytest.mark.parametrize(
    ("losses", "student", "teacher", "message"),
    [
        (
            Losses(attention_maps=AttentionMaps()),
            ("bert", {"num_attention_heads": 2}),
            ("bert", {}),
            r"losses\.attention_maps: the student has 2 heads in a layer and the teacher 4",
        ),
        (
            Losses(attention_maps=AttentionMaps()),
            ("albert", {}),
            ("albert", {"num_attention_heads": 8}),
            r"losses\.attention_maps: the student has 4 heads in a layer and the teacher 8",
        ),
        (
            Losses(attention_maps=AttentionMaps()),
            ("llama", {}),
            ("llama", {}),
            r"losses\.attention_maps: this family applies rotary .* losses\.relations",
        ),
        (
            Losses(attention_maps=AttentionMaps()),
            ("bert", {}),
            ("llama", {}),
            r"losses\.attention_maps: this family applies rotary",
        ),
        (
            Losses(relations=Relations(heads=3)),
            ("bert", {}),
            ("bert", {}),
            r"losses\.relations\.heads: 3 heads do not divide a width of 32",
        ),
        (
            Losses(relations=Relations(heads=32)),
            ("llama", {}),
            ("llama", {}),
            r"losses\.relations\.heads: 32 heads do not divide a width of 16",
        ),
        (
            Losses(relations=Relations(heads=32)),
            ("gpt2", {"hidden_size": 16}),
            ("gpt2", {}),
            r"losses\.relations\.heads: 32 heads do not divide a width of 16",
        ),
        *(
            (losses, ("bert", {}), ("bert", {"num_hidden_layers": 4}), message)
            for layers, message in (
                ({2: 0}, "layer 2 of the student, which has layers 0 to 1"),
                ({0: 4}, "layer 4 of the teacher, which has layers 0 to 3"),
                ({}, "layers maps no layer"),
            )
            for losses in (
                Losses(hidden_states=HiddenStates(layers=layers)),
                Losses(attention_maps=AttentionMaps(layers=layers)),
                Losses(relations=Relations(layers=layers)),
            )
        ),
    ],
)
def test_what_would_fail_in_the_first_step_fails_at_once(
    with_random_weights, losses, student, teacher, message
):
    one, other = (with_random_weights(family, **changes) for family, changes in (student, teacher))
    with pytest.raises(InputError, match=message):
        made(losses, one, other)


@pytest.mark.parametrize(("family", "heads"), [("llama", 16), ("gpt2", 32), ("albert", 2)])
def test_relations_are_split_into_the_heads_that_are_named(
    with_random_weights, texts, family, heads
):
    student, teacher = with_random_weights(family), with_random_weights(family, seed=3)
    losses = Losses(soft_targets=None, relations=Relations(heads=heads))
    (term,) = terms_of(made(losses, student, teacher), student, teacher, texts()).values()
    wanted = RequestedOutputs(attention=frozenset([1]))
    with torch.no_grad():
        own, its = (
            run_with_outputs(one, texts(), wanted).attention[1] for one in (student, teacher)
        )
    mask = texts()["attention_mask"].bool()
    expected = relation_loss(own, its, mask, causal=False, heads=heads)
    assert term.item() == pytest.approx(float(expected))
    assert float(expected) != pytest.approx(float(relation_loss(own, its, mask, causal=False)))


def test_numbers_have_no_hard_targets(with_random_weights):
    model = with_random_weights("bert", num_labels=1)
    hard = Losses(soft_targets=SoftTargets(hard=True))
    with pytest.raises(InputError, match=r"losses\.soft_targets\.hard"):
        made(hard, model, model, kind="continuous")
    made(Losses(), model, model, kind="continuous")
    made(hard, model, model)


@pytest.mark.parametrize("term", ["attention_maps", "relations"])
def test_heads_of_an_unknown_family_are_not_found(with_random_weights, term):
    model = with_random_weights("bert")
    model.config.model_type = "strange"
    terms: Any = {"attention_maps": AttentionMaps, "relations": Relations}
    losses = Losses(**{term: terms[term]()})
    with pytest.raises(InputError, match="no known family"):
        made(losses, model, model)
    made(Losses(hidden_states=HiddenStates(), embeddings=Embeddings()), model, model)


def test_a_regression_student_is_distilled_by_mse(with_random_weights, texts):
    student, teacher = (with_random_weights("bert", seed=seed, num_labels=1) for seed in (2, 3))
    objective = made(Losses(), student, teacher, kind="continuous")
    found = terms_of(objective, student, teacher, texts())["soft_targets"]
    with torch.no_grad():
        inputs = {name: texts()[name] for name in ("input_ids", "attention_mask")}
        expected = functional.mse_loss(student(**inputs).logits, teacher(**inputs).logits)
    assert found.item() == pytest.approx(float(expected))
