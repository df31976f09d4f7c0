"""What tests of distillation share: models as if trained, ragged batches, a slow divergence."""

import math
from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

LENGTHS = [4, 9, 6, 7]


def randomize_weights_(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Weights as large as after training, biases that are not zero; in float64 and eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    model.eval()
    model.double()
    return model


@pytest.fixture
def with_random_weights(tiny_model) -> Callable[..., PreTrainedModel]:
    """A classifier of a family, or with ``tokens`` a language model; other weights by seed."""

    def build(family: str, seed: int = 2, *, tokens: bool = False, **changes) -> PreTrainedModel:
        model = tiny_model(family, **changes)
        if tokens:
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**{**model.config.to_dict(), "num_labels": 2})
            )
            model.apply(model._init_weights)
        return randomize_weights_(model, seed)

    return build


@pytest.fixture
def texts() -> Callable[..., dict[str, torch.Tensor]]:
    """Four texts of different lengths, padded on the right; their ids are 30, 31, 32, 33."""

    def batch(rows=None, length: int = 9) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(2, 100, (len(LENGTHS), 20), generator=generator)
        mask = (torch.arange(20) < torch.tensor(LENGTHS)[:, None]).long()
        whole = {
            "input_ids": (ids * mask)[:, :length],
            "attention_mask": mask[:, :length],
            "example_id": torch.arange(len(LENGTHS)) + 30,
        }
        chosen = list(range(len(LENGTHS)) if rows is None else rows)
        return {name: value[chosen] for name, value in whole.items()}

    return batch


def _softmax(scores: list[float]) -> list[float]:
    whole = sum(math.exp(score) for score in scores)
    return [math.exp(score) / whole for score in scores]


@pytest.fixture
def slow_divergence() -> Callable[[list[float], list[float]], float]:
    """KL(teacher || student) of two lists of scores before the softmax, in nats."""

    def divergence(student: list[float], teacher: list[float]) -> float:
        pairs = zip(_softmax(student), _softmax(teacher), strict=True)
        return sum(p * (math.log(p) - math.log(q)) for q, p in pairs)

    return divergence


@pytest.fixture
def slow_pairs(slow_divergence):
    """The same, of a score for each token, as seen from each token, in each head of each text."""

    def divergence(student, teacher, mask, *, causal: bool):
        found = []
        for text in range(len(mask)):
            tokens = [token for token in range(mask.shape[1]) if mask[text, token]]
            for head in range(student.shape[1]):
                for token in tokens:
                    seen = [other for other in tokens if other <= token or not causal]
                    rows = [one[text, head, token].tolist() for one in (student, teacher)]
                    found.append(slow_divergence(*([row[i] for i in seen] for row in rows)))
        return sum(found) / len(found)

    return divergence
