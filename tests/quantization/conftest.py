import pytest
import torch

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.forward import model_inputs
from lightning_compress.quantization import SCHEMES

INTEGER_SCHEMES = [name for name, scheme in SCHEMES.items() if scheme.dtype is None]


@pytest.fixture
def looking():
    """Some batches, one of them with padding, as calibration examples of a model."""

    def build(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        batches = [{"input_ids": torch.randint(2, 100, (6, 9), generator=generator)}]
        mask = (torch.arange(12) < torch.tensor([[12], [5], [8]])).long()
        ids = torch.randint(2, 100, (3, 12), generator=generator) * mask
        batches.append({"input_ids": ids, "attention_mask": mask})

        def logits(batch):
            return model(**model_inputs(model, batch)).logits

        return Calibration(batches, lambda batch: logits(batch).mean(), logits)

    return build
