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
    """Batches of several sizes and lengths, one with a single example, padded on the right."""
    return _batches(0)


@pytest.fixture
def torch_logits():
    """A function of a model and batches: the logits of the model's own forward, by batch."""

    def logits(model, batches):
        with torch.no_grad():
            return [model(**model_inputs(model, batch)).logits for batch in batches]

    return logits
