"""Which of the two tasks of words a model is for, and what they compute."""

import pytest
import torch
from sklearn import metrics as reference
from transformers import AutoModelForTokenClassification, PreTrainedModel

from lightning_compress.tasks import task_of
from lightning_compress.tasks.labels import metrics_of
from lightning_compress.types import IGNORE_INDEX

from ..families import tiny_config

ENTITIES, PARTS = ["O", "B-x", "I-x"], ["NOUN", "VERB", "X"]


def tagger(names: list[str]) -> PreTrainedModel:
    config = tiny_config("bert", id2label=dict(enumerate(names)))
    model: PreTrainedModel = AutoModelForTokenClassification.from_config(config)
    return model


def test_the_tags_tell_what_is_counted() -> None:
    cases = ((ENTITIES, "f1"), (PARTS, "accuracy"), (["LABEL_0", "LABEL_1"], "accuracy"))
    for names, metric in cases:
        task = task_of(tagger(names))
        assert task.name == "token-classification"
        assert task.primary_metric == metric
    several = tagger(PARTS)
    several.config.problem_type = "single_label_classification"
    assert task_of(several).primary_metric == "accuracy"


def test_loss_and_accuracy_are_over_the_words() -> None:
    model = tagger(PARTS)
    task, metrics = task_of(model), metrics_of(model)
    logits, labels = torch.randn(4, 6, 3), torch.randint(3, (4, 6))
    labels[torch.rand(4, 6) < 0.4] = IGNORE_INDEX
    words = [(row, place) for row, place in labels.ne(IGNORE_INDEX).nonzero().tolist()]
    losses = [-logits[at].log_softmax(-1)[labels[at]] for at in words]
    assert float(task.loss(logits, labels)) == pytest.approx(float(sum(losses)) / len(words))
    weights = torch.tensor([1.0, 2.0, 0.5])
    weighed = sum(weights[labels[at]] * loss for at, loss in zip(words, losses, strict=True))
    found_loss = float(task.weighted_loss(weights)(logits, labels))
    assert found_loss == pytest.approx(float(weighed) / len(words))
    metrics.update(*task.predictions_and_targets(logits, labels))
    found = {name: float(value) for name, value in metrics.compute().items()}
    tags = [int(labels[at]) for at in words], [int(logits[at].argmax()) for at in words]
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(*tags))
    assert found["f1"] == pytest.approx(reference.f1_score(*tags, average="macro"))
    counts = task.label_counts(labels, 3).tolist()
    assert counts == [tags[0].count(label) for label in range(3)]


def test_no_constant_tag_is_better_than_the_baseline() -> None:
    for names in (ENTITIES, PARTS):
        model = tagger(names)
        task = task_of(model)
        labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 400, True).view(20, 20)
        labels[:, 1:][(labels[:, 1:] == 2) & (labels[:, :-1] == 0)] = 1  # I-x continues an entity
        labels[:, 0].clamp_(max=1)
        counts = task.label_counts(labels, 3).tolist()
        bound = task.trivial_baseline(examples=20, label_counts=counts, vocabulary=0)
        for constant in range(3):
            metrics = metrics_of(model)
            metrics.update(torch.full_like(labels, constant), labels)
            assert float(metrics.compute()[task.primary_metric]) <= bound
