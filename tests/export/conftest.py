import pytest
import torch

from lightning_compress.models.forward import model_inputs


def _batches(seed):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for rows, length in ((4, 24), (1, 7), (3, 40)):
        ids = torch.randint(2, 100, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, length // 2 + 1 :] = 0
        found.append({"input_ids": ids * mask, "attention_mask": mask})
    return found


@pytest.fixture
def batches():
    """Batches of several sizes and lengths, one of one text, with padding on the right."""
    return _batches(0)


@pytest.fixture
def said():
    """What a model says in PyTorch of batches, straight from its own forward."""

    def say(model, given):
        with torch.no_grad():
            return [model(**model_inputs(model, batch)).logits for batch in given]

    return say
