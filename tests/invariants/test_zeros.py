"""What is pruned stays pruned: zeros stay zero and removed parts stay removed, after every step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_compress.models import masks_of

from ..conftest import ToyData
from .techniques import EPOCHS, TECHNIQUES

WHILE_TRAINING = [name for name, technique in TECHNIQUES.items() if technique.during_training]


class Watch(L.Callback):
    """Checks the model after every step; comes after the callback that prunes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.zeros: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        weights = dict(pl_module.model.named_parameters())
        masks = masks_of(pl_module.model)
        for name, mask in masks.items():
            assert not weights[name][~mask].any(), name
            for state in trainer.optimizers[0].state.get(weights[name], {}).values():
                if isinstance(state, torch.Tensor) and state.shape == mask.shape:
                    assert not state[~mask].any(), name
        self.zeros.append(sum(int((~mask).sum()) for mask in masks.values()))
        self.sizes.append(sum(weight.numel() for weight in weights.values()))


@pytest.mark.parametrize("training", [
    {}, {"accumulate_grad_batches": 2},
    pytest.param({"precision": "bf16-mixed"}, marks=pytest.mark.slow),
    pytest.param({"gradient_clip_val": 0.1}, marks=pytest.mark.slow),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", WHILE_TRAINING)
def test_what_is_pruned_stays_pruned(
    name: str,
    training: dict[str, Any],
    trained: Path,
    toy_data: ToyData,
    quiet_trainer: Callable[..., L.Trainer],
) -> None:
    technique, watch = TECHNIQUES[name], Watch()
    callbacks = [*technique.callbacks(), watch]
    trainer = quiet_trainer(max_epochs=EPOCHS, callbacks=callbacks, **training)
    trainer.fit(technique.build(trained), toy_data)
    shrunk = watch.sizes[-1] < max(watch.sizes)
    if any(watch.zeros) and not shrunk:
        assert watch.zeros == sorted(watch.zeros), "a pruned weight came back"
    assert shrunk or any(watch.zeros) or "quantization" in name, f"{name} pruned nothing"
