"""How closely an export matches, and whether that is enough."""

import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.export.verify import Agreement, agreement_of, require_within_tolerance


class Constant:
    """A program that always says the same."""

    def __init__(self, logits):
        self.logits = torch.tensor(logits)

    def load(self, batch):
        return batch

    def __call__(self, loaded):
        return self.logits


@pytest.mark.parametrize(
    ("agreement", "precision", "fine"),
    [
        (Agreement(8, 9e-5, 0.5, 1.0), "fp32", True),
        (Agreement(8, 2e-4, 0.5, 1.0), "fp32", False),
        (Agreement(8, 2e-4, 50.0, 1.0), "fp32", True),  # in proportion
        (Agreement(1000, 1e-6, 0.5, 0.998), "fp32", False),
        (Agreement(1000, 0.09, 0.5, 0.98), "int8-static", True),
        (Agreement(1000, 0.2, 0.5, 0.98), "int8-static", False),
        (Agreement(1000, 0.09, 0.5, 0.96), "int8-static", False),
        (Agreement(8, 1e-6, 0.5, None), "fp32", True),
    ],
)
def test_tolerances(agreement, precision, fine):
    if fine:
        require_within_tolerance(agreement, precision)
    else:
        with pytest.raises(InputError, match="outputs differ from PyTorch's on"):
            require_within_tolerance(agreement, precision)


def test_padding_is_not_compared_and_nan_is_an_infinite_difference():
    mask = torch.tensor([[1, 1, 0]])
    batch = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": mask}
    wanted = torch.tensor([[[1.0, 2.0], [3.0, 1.0], [9.0, 0.0]]])
    found = agreement_of(
        Constant([[[1.0, 2.5], [3.0, 4.0], [0.0, 70.0]]]), lambda _: wanted, [batch]
    )
    assert found == Agreement(1, 3.0, 3.0, 0.5)
    nothing = agreement_of(Constant([[float("nan"), 0.0]]), lambda _: torch.zeros(1, 2), [batch])
    assert nothing.largest_difference == float("inf")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_in_both_is_not_equal(value):
    batch = {"input_ids": torch.tensor([[5, 6]])}
    logits = [[value, 0.0]]
    found = agreement_of(Constant(logits), lambda _: torch.tensor(logits), [batch])
    assert found.largest_difference == float("inf")
    with pytest.raises(InputError, match=r"not finite .* in fp16"):
        require_within_tolerance(found, "fp16")


def test_several_labels_are_compared_label_by_label():
    batch = {"input_ids": torch.tensor([[5], [6], [7]])}
    wanted = torch.tensor([[2.0, 2.0, -1.0], [-1.0, -2.0, -3.0], [1.0, -1.0, 1e-3]])
    nearly = torch.tensor([[1.9, 2.1, -1.0], [-3.0, -2.0, -1.0], [1.0, -1.0, -1e-3]])
    found = agreement_of(Constant(nearly.tolist()), lambda _: wanted, [batch], several_labels=True)
    assert found.equal_predictions == pytest.approx(2 / 3)
