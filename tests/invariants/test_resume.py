"""A run that is killed and resumed ends like one that is not interrupted, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lightning_compress.models import manifest_of, masks_of

from ..conftest import SaveEveryStep, ToyData, assert_same
from .techniques import EPOCHS, NAMES, TECHNIQUES


def outcome(trainer: L.Trainer, module: Any) -> dict[str, Any]:
    """All that the two runs have to have in common at their end."""
    return {
        "weights": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedules": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "callbacks": {
            type(one).__name__: one.state_dict()
            for one in trainer.callbacks  # type: ignore[attr-defined]
            if not isinstance(one, SaveEveryStep)
        },
        "masks": dict(masks_of(module.model)),
        "manifest": manifest_of(module.model),
    }


@pytest.mark.parametrize("name", NAMES)
def test_resumed_equals_uninterrupted(
    name: str,
    trained: Path,
    toy_data: ToyData,
    quiet_trainer: Callable[..., L.Trainer],
    tmp_path: Path,
) -> None:
    technique = TECHNIQUES[name]

    def fit(checkpoint: Path | None = None, seed: int = 0) -> dict[str, Any]:
        module = technique.build(trained, seed)
        save = [] if checkpoint else [SaveEveryStep(tmp_path)]
        trainer = quiet_trainer(max_epochs=EPOCHS, callbacks=[*technique.callbacks(), *save])
        trainer.fit(module, toy_data, ckpt_path=checkpoint, weights_only=True)
        return outcome(trainer, module)

    uninterrupted = fit()
    assert uninterrupted["manifest"], f"{name} compressed nothing"
    for step in (8, 16, 24):  # ends of epochs: a plain DataLoader cannot resume inside of one
        resumed = fit(tmp_path / f"step={step}.ckpt", seed=7)
        assert_same(resumed, uninterrupted, f"from step {step}")
