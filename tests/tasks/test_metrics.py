"""The metrics against scikit-learn, SciPy and slow loops."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference
from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.tasks import task_named
from lightning_compress.types import ProblemType


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def computed(
    name: str,
    problem_type: ProblemType | None,
    num_labels: int | None,
    logits: Tensor,
    labels: Tensor,
    batch_size: int = 7,
) -> dict[str, float]:
    task = task_named(name, problem_type)
    metrics = task.metrics(num_labels)
    for start in range(0, len(logits), batch_size):
        part = slice(start, start + batch_size)
        metrics.update(*task.predictions_and_targets(logits[part], labels[part]))
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("classes", [2, 4])
def test_single_label_agrees_with_scikit_learn(classes: int) -> None:
    labels = torch.randint(classes, (100,))
    logits = torch.randn(100, classes) + torch.nn.functional.one_hot(labels, classes)
    found = computed(
        "sequence-classification", "single_label_classification", classes, logits, labels
    )
    guesses = logits.argmax(-1)
    average = "binary" if classes == 2 else "macro"
    assert found == pytest.approx(
        {
            "accuracy": reference.accuracy_score(labels, guesses),
            "f1": reference.f1_score(labels, guesses, average=average),
            "mcc": reference.matthews_corrcoef(labels, guesses),
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("always", [0, 1])
def test_a_constant_answer_correlates_with_nothing(classes: int, always: int) -> None:
    labels = torch.arange(90) % classes
    logits = torch.nn.functional.one_hot(torch.full((90,), always), classes).float()
    found = computed(
        "sequence-classification", "single_label_classification", classes, logits, labels
    )
    assert found["mcc"] == reference.matthews_corrcoef(labels, logits.argmax(-1)) == 0


def test_a_hundred_thousand_classes_take_no_square_of_memory() -> None:
    metrics = task_named("sequence-classification", "single_label_classification").metrics(100_000)
    held = sum(
        state.numel()
        for metric in metrics.values()
        for state in metric.metric_state.values()
        if isinstance(state, torch.Tensor)
    )
    assert held < 10 * 100_000


def test_multi_label_agrees_with_scikit_learn() -> None:
    labels = torch.randint(2, (50, 5))
    logits = torch.randn(50, 5) + labels
    found = computed("sequence-classification", "multi_label_classification", 5, logits, labels)
    guesses = (logits > 0).int()
    assert found == pytest.approx(
        {
            "f1": reference.f1_score(labels, guesses, average="micro"),
            "accuracy": (guesses == labels).float().mean().item(),
        },
        abs=1e-6,
    )


def test_regression_agrees_with_scipy() -> None:
    labels = torch.randint(6, (80,)).float()  # many ties
    logits = labels[:, None] + torch.randn(80, 1)
    found = computed("sequence-classification", "regression", 1, logits, labels)
    guesses = logits[:, 0].numpy()
    assert found == pytest.approx(
        {
            "pearson": stats.pearsonr(guesses, labels.numpy()).statistic,
            "spearman": stats.spearmanr(guesses, labels.numpy()).statistic,
            "mse": np.mean((guesses - labels.numpy()) ** 2),
        },
        abs=1e-5,
    )


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_perplexity_is_a_slow_loop_over_tokens_with_padding_ignored(task: str) -> None:
    logits, labels = torch.randn(5, 8, 13), torch.randint(13, (5, 8))
    labels[1, 4:] = -100
    labels[3, :] = -100
    total, count = 0.0, 0
    for row in range(5):
        for place in range(8):
            source = place - 1 if task == "causal-lm" else place
            if source < 0 or labels[row, place] == -100:
                continue
            chances = torch.softmax(logits[row, source].double(), -1)
            total -= math.log(chances[labels[row, place]].item())
            count += 1
    expected = math.exp(total / count)
    for batch_size in (1, 2, 5):
        found = computed(task, None, None, logits, labels, batch_size)
        assert found == {"perplexity": pytest.approx(expected, rel=1e-5)}


def test_perplexity_stays_finite_where_the_probability_underflows() -> None:
    logits = torch.zeros(1, 5, 3)
    logits[..., 0] = 200.0
    found = computed("masked-lm", None, None, logits, torch.tensor([[0, 0, 0, 0, 1]]))
    assert found["perplexity"] == pytest.approx(math.exp(200 / 5), rel=1e-4)


def test_primary_metric_is_among_the_metrics() -> None:
    tags = ["O", "B-x", "I-x"]
    cases: list[tuple[str, ProblemType | None, str, bool]] = [
        ("sequence-classification", "single_label_classification", "accuracy", True),
        ("sequence-classification", "multi_label_classification", "f1", True),
        ("sequence-classification", "regression", "spearman", True),
        ("causal-lm", None, "perplexity", False),
        ("masked-lm", None, "perplexity", False),
        ("token-classification", None, "f1", True),
    ]
    for name, problem_type, metric, higher in cases:
        task = task_named(name, problem_type)
        assert (task.primary_metric, task.higher_is_better) == (metric, higher)
        assert metric in task.metrics(3, tags)


def test_building_metrics_warns_of_nothing_and_needs_labels() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task_named("sequence-classification", "regression").metrics(1)
    with pytest.raises(InputError, match="number of its labels"):
        task_named("sequence-classification").metrics(None)
