import pytest
import torch
from torch.nn import functional

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.forward import model_inputs
from lightning_compress.quantization import SCHEMES

# Those with integer weights; of 8 or 4 bits.
INTEGER_SCHEMES = [name for name, scheme in SCHEMES.items() if scheme.dtype is None]


def calibration_batches(seed=0):
    """Six texts of 9 tokens, and three of 12, 5 and 8 padded to 12."""
    generator = torch.Generator().manual_seed(seed)
    batches = [{"input_ids": torch.randint(2, 100, (6, 9), generator=generator)}]
    mask = (torch.arange(12) < torch.tensor([[12], [5], [8]])).long()
    ids = torch.randint(2, 100, (3, 12), generator=generator) * mask
    return [*batches, {"input_ids": ids, "attention_mask": mask}]


@pytest.fixture
def calibration_of():
    """Builds the calibration of a model on :func:`calibration_batches`."""

    def build(model, seed=0):
        def logits(batch):
            return model(**model_inputs(model, batch)).logits

        return Calibration(calibration_batches(seed), lambda batch: logits(batch).mean(), logits)

    return build


@torch.inference_mode()
def logits_of(model, calibration):
    """Logits of each calibration batch."""
    return [calibration.logits(batch) for batch in calibration.batches]


def train_(model, calibration, steps=3, learning_rate=1e-2):
    """Train in place on labels made of the first token; gives the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        for batch in calibration.batches:
            optimizer.zero_grad()
            labels = batch["input_ids"][:, 0] % 2
            loss = functional.cross_entropy(calibration.logits(batch)[..., :2], labels)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses
