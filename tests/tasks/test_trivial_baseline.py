"""A model that has learned nothing is told from one that has."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from lightning_compress.distillation.teacher import LiveTeacher
from lightning_compress.errors import InputError
from lightning_compress.modules.teacher_setup import evaluate_teacher
from lightning_compress.tasks import task_named
from lightning_compress.types import ProblemType

EXAMPLES = 400
SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"


@pytest.mark.parametrize(
    ("problem_type", "examples", "counts", "expected"),
    [
        (SINGLE, 100, {0: 50, 1: 50}, 0.5 + 2 * 0.05),  # a standard error of sqrt(1/4 / 100)
        (SINGLE, 100, {0: 90, 1: 10}, 0.9 + 2 * 0.03),
        (SINGLE, 64, {0: 16, 1: 16, 2: 16, 3: 16}, 0.25 + 2 * 0.4330127 / 8),
        (SINGLE, 5, {0: 5, 1: 0}, 1.0),
        (MULTI, 100, {0: 50, 1: 50}, 2 / 3),  # all predicted, half of them right, none missed
        (MULTI, 100, {0: 90, 1: 10, 2: 10}, 2 * 90 / (100 + 110)),  # only the first
        (MULTI, 100, {0: 80, 1: 60, 2: 10}, 2 * 140 / (200 + 150)),  # the first two
        (MULTI, 100, {0: 0, 1: 0}, 0.0),
        ("regression", 101, {}, 0.2),
        ("regression", 1, {}, 2.0),
        (None, 7, {}, 0.9 * 512),
    ],
)
def test_values_by_hand(problem_type, examples, counts, expected):
    task = task_named("sequence-classification" if problem_type else "causal-lm", problem_type)
    found = task.trivial_baseline(
        examples=examples, label_counts=list(counts.values()), vocabulary=512
    )
    assert isinstance(found, float)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("label_counts", [(200, 200, 200), (360, 40, 20), (10, 390, 200)])
def test_no_constant_answer_is_better_than_chance(label_counts):
    labels = torch.stack([torch.arange(EXAMPLES) < count for count in label_counts], dim=1)
    task = task_named("sequence-classification", MULTI)
    found = task.trivial_baseline(examples=EXAMPLES, label_counts=label_counts, vocabulary=0)
    best = 0.0
    for code in range(1, 8):
        predicted = torch.tensor([bool(code >> label & 1) for label in range(3)]).expand_as(labels)
        right = int((predicted & labels).sum())
        best = max(best, 2 * right / (int(predicted.sum()) + int(labels.sum())))
    assert found == pytest.approx(best)


def batches(labels: torch.Tensor | None):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (EXAMPLES, 8), generator=generator)
    for rows in torch.arange(EXAMPLES).split(50):
        yield {"input_ids": ids[rows], "labels": ids[rows] if labels is None else labels[rows]}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [SINGLE, "four classes", MULTI, "regression", "causal", "masked"])
def test_a_random_teacher_is_stopped(kind, seed, tiny_model, quiet_trainer):
    rows = torch.arange(EXAMPLES)
    labels: dict[str, Any] = {
        SINGLE: rows % 2,
        "four classes": rows % 4,
        MULTI: torch.stack([rows % 2, rows // 2 % 2, rows // 4 % 2], dim=1).float(),
        "regression": torch.randn(EXAMPLES, generator=torch.Generator().manual_seed(9)),
    }
    if kind in ("causal", "masked"):
        auto = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}[kind]
        config = tiny_model({"causal": "gpt2", "masked": "bert"}[kind]).config
        model = auto.from_config(AutoConfig.for_model(**config.to_dict()))
    else:
        count = {SINGLE: 2, "four classes": 4, MULTI: 3, "regression": 1}[kind]
        problem_type = SINGLE if kind == "four classes" else kind
        model = tiny_model("bert", num_labels=count, problem_type=problem_type)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.02, generator=generator)
    labelled_batches = list(batches(labels.get(kind)))
    with pytest.raises(InputError, match=r"model\.teacher is no better than chance"):
        evaluate_teacher(LiveTeacher(model.eval()), labelled_batches, quiet_trainer())


def test_what_cannot_be_judged_is_not_refused(tiny_bert, quiet_trainer):
    with torch.no_grad():
        for weight in tiny_bert.classifier.parameters():
            weight.zero_()  # so it always says the first class
    examples = {"input_ids": torch.full((6, 8), 9), "labels": torch.zeros(6, dtype=torch.long)}
    teacher = LiveTeacher(tiny_bert)
    assert evaluate_teacher(teacher, [examples], quiet_trainer())["accuracy"] == 1.0
    examples["labels"][:2] = 1
    with pytest.raises(InputError, match="chance"):
        evaluate_teacher(teacher, [examples] * 20, quiet_trainer())
    assert evaluate_teacher(teacher, [examples] * 20, quiet_trainer(fast_dev_run=True))
