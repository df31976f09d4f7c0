"""Weights of the classes in the loss."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from lightning_compress.data import TextClassificationDataModule
from lightning_compress.errors import InputError
from lightning_compress.modules import FineTuningModule
from lightning_compress.modules.class_weights import class_weights
from lightning_compress.tasks import task_named

from .conftest import QUIET, STUDENT, write_tokenizer

CLASSES: dict[str, Any] = {"names": ["a", "b", "c"], "several_labels": False}


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.array([0] * 70 + [1] * 25 + [2] * 5)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = class_weights("balanced", frequencies=[0.7, 0.25, 0.05], **CLASSES)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_a_label_without_examples_has_weight_one() -> None:
    for several in (False, True):
        found = class_weights(
            "balanced", names=["a", "b"], frequencies=[0.5, 0.0], several_labels=several
        )
        assert found.tolist() == [1.0, 1.0]


def test_each_class_has_an_equal_share_in_the_balanced_loss() -> None:
    labels = torch.tensor([0] * 8 + [1] * 2)
    weights = class_weights(
        "balanced", names=["a", "b"], frequencies=[0.8, 0.2], several_labels=False
    )
    loss = task_named("sequence-classification").weighted_loss(weights)
    logits = torch.zeros(10, 2, requires_grad=True)
    loss(logits, labels).backward()
    assert logits.grad is not None
    share = logits.grad.abs().sum(1)
    assert float(share[:8].sum()) == pytest.approx(float(share[8:].sum()))


def slow_single(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    known = [i for i in range(len(labels)) if labels[i] != -100]
    each = [-float(weights[labels[i]] * logits[i].log_softmax(-1)[labels[i]]) for i in known]
    return sum(each) / len(each)


def slow_several(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    each = []
    for row, target in zip(logits, labels, strict=True):
        if target.isnan().all():
            continue
        for value, label, weight in zip(row.sigmoid(), target, weights, strict=True):
            each.append(-float(weight * label * value.log() + (1 - label) * (1 - value).log()))
    return sum(each) / len(each)


def test_the_loss_is_that_of_a_slow_loop() -> None:
    torch.manual_seed(0)
    weights, logits = torch.tensor([0.5, 2.0, 7.0]), torch.randn(6, 3)
    labels = torch.tensor([0, 2, 1, -100, 2, 0])
    task = task_named("sequence-classification")
    found = task.weighted_loss(weights)(logits, labels)
    assert float(found) == pytest.approx(slow_single(logits, labels, weights), rel=1e-5)
    several = (torch.rand(6, 3) > 0.5).float()
    several[3] = torch.nan
    task = task_named("sequence-classification", "multi_label_classification")
    found = task.weighted_loss(weights)(logits, several)
    assert float(found) == pytest.approx(slow_several(logits, several, weights), rel=1e-5)
    assert float(task.weighted_loss(weights)(logits, torch.full((6, 3), torch.nan))) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("even", "must be balanced, a list"),
        ([1.0, -1.0], "at least 0"),
        ({"a": float("nan")}, "finite"),
    ],
)
def test_wrong_values_are_refused_by_the_constructor(option: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FineTuningModule(class_weights=option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ([1.0, 2.0], r"2 weights, and there are 3 labels \('a', 'b', 'c'\)"),
        ({"a": 1.0, "b": 1.0}, "names the labels 'a', 'b', and the data have 'a', 'b', 'c'"),
        ("balanced", "no label_frequencies"),
    ],
)
def test_weights_that_do_not_fit_the_labels_are_refused(option: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_weights(option, frequencies=None, **CLASSES)


def rows(folder: Path, lines: list[str]) -> TextClassificationDataModule:
    write_tokenizer(folder / "tokenizer", ["good", "bad", "film"])
    (folder / "texts").mkdir()
    for split in ("train", "validation"):
        (folder / "texts" / f"{split}.csv").write_text("\n".join(lines))
    return TextClassificationDataModule(
        path=str(folder / "texts"),
        tokenizer=str(folder / "tokenizer"),
        max_length=8,
        batch_size=20,
        label=lines[0].split(",")[1:],
        cache_dir=str(folder / "cache"),
    )


def first_loss(
    module: FineTuningModule, data: TextClassificationDataModule
) -> tuple[float, tuple[Tensor, Tensor]]:
    """The training loss of a batch, and what the slow loops need for theirs."""
    trainer = L.Trainer(**QUIET, max_steps=1, num_sanity_val_steps=0, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    batch = next(iter(data.val_dataloader()))
    module.model.eval()
    with torch.no_grad():
        return float(module._loss(batch)), (module(batch), batch["labels"])


def test_a_run_weighs_by_the_classes_of_its_training_rows(tmp_path: Path) -> None:
    data = rows(tmp_path, ["text,label", *["good film,yes"] * 4, *["bad film,no"] * 16])
    found, known = first_loss(FineTuningModule(config=STUDENT, class_weights="balanced"), data)
    assert data.label_frequencies == [0.8, 0.2]
    assert found == pytest.approx(slow_single(*known, torch.tensor([0.625, 2.5])), rel=1e-5)
    assert found != pytest.approx(slow_single(*known, torch.ones(2)), rel=1e-5)


def test_names_of_labels_may_carry_the_weights(tmp_path: Path) -> None:
    data = rows(tmp_path, ["text,label", *["good film,yes"] * 4, *["bad film,no"] * 16])
    module = FineTuningModule(config=STUDENT, class_weights={"yes": 3.0, "no": 1.0})
    found, known = first_loss(module, data)
    assert found == pytest.approx(slow_single(*known, torch.tensor([1.0, 3.0])), rel=1e-5)


def test_several_label_columns_are_weighed_by_their_positive_rows(tmp_path: Path) -> None:
    lines = ["text,rude,long", *["bad film,1,0"] * 4, *["good film,0,1"] * 16]
    data = rows(tmp_path, lines)
    found, known = first_loss(FineTuningModule(config=STUDENT, class_weights="balanced"), data)
    assert data.label_frequencies == [0.2, 0.8]
    assert found == pytest.approx(slow_several(*known, torch.tensor([4.0, 0.25])), rel=1e-5)


def test_a_regression_has_no_classes(tmp_path: Path) -> None:
    data = rows(tmp_path, ["text,label", *["good film,0.5"] * 4, *["bad film,0.1"] * 16])
    module = FineTuningModule(config=STUDENT, class_weights=[1.0])
    with pytest.raises(InputError, match="regression has no classes to weigh"):
        first_loss(module, data)
