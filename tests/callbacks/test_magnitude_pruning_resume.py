import pytest
import torch

from lightning_compress.callbacks import IterativeMagnitudePruning
from lightning_compress.callbacks import run as target_progress
from lightning_compress.models.masks import masks_of

from ..conftest import SaveEveryStep, assert_same

STEPS = 24  # three epochs
WARMUP, END = 3, 12


def pruning(rewind, **options):
    return IterativeMagnitudePruning(
        sparsity=0.7,
        weights=["net.*.weight"],
        warmup=WARMUP,
        recovery=STEPS - END,
        interval=2,
        unit="steps",
        rewind=rewind,
        **options,
    )


def everything(trainer, module, callback):
    return {
        "weights": dict(module.state_dict()),
        "masks": masks_of(module),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedules": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "callback": callback.state_dict(),
    }


@pytest.fixture
def fit(plain_module, loader, quiet_trainer, tmp_path):
    """Runs all steps, from a checkpoint, or from the start, then leaving one of each step."""

    def run(rewind, *, ckpt=None, seed=0, **training):
        callback = pruning(rewind)
        callbacks = [callback] if ckpt else [callback, SaveEveryStep(tmp_path)]
        trainer = quiet_trainer(**{"max_epochs": 3, "callbacks": callbacks, **training})
        module = plain_module("AdamW", "step", seed=seed)
        trainer.fit(module, loader(), ckpt_path=ckpt, weights_only=True)
        return everything(trainer, module, callback)

    return run


@pytest.mark.parametrize("rewind", [None, "learning_rate", "weights"])
def test_a_resumed_run_equals_the_uninterrupted_bit_for_bit(fit, rewind, tmp_path):
    whole = fit(rewind)
    assert whole["callback"]["target_reached"]
    # During the warm-up, where it ends, in the middle, at an epoch's end, where the target is
    # reached and after it, in the middle of an epoch and at its end.
    for step in (1, WARMUP, 6, 8, END, 15, 16, 21):
        resumed = fit(rewind, ckpt=tmp_path / f"step={step}.ckpt", seed=1)
        assert_same(resumed, whole, f"from {step}")


def test_resume_with_accumulation(fit, tmp_path):
    options = {"accumulate_grad_batches": 2, "max_steps": 24, "max_epochs": 6}
    whole = fit("learning_rate", **options)
    for step in (4, 10, END, 14):
        resumed = fit("learning_rate", ckpt=tmp_path / f"step={step}.ckpt", seed=1, **options)
        assert_same(resumed, whole, f"from {step}")


def test_the_best_checkpoint_restarts_once_and_not_again_on_resume(fit, tmp_path, monkeypatch):
    restarts = []
    monkeypatch.setattr(
        target_progress,
        "restart_best_checkpoint",
        lambda trainer: restarts.append(trainer.global_step),
    )
    fit(None)
    assert restarts == [END]
    fit(None, ckpt=tmp_path / "step=15.ckpt")
    assert restarts == [END]
    fit(None, ckpt=tmp_path / "step=6.ckpt")
    assert restarts == [END, END]


def rates(fit_folder):
    """The learning rate after each step."""
    found = {}
    for step in range(1, STEPS + 1):
        checkpoint = torch.load(fit_folder / f"step={step}.ckpt", weights_only=True)
        found[step] = checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]
    return found


@pytest.mark.parametrize("rewind", ["learning_rate", "weights"])
def test_the_learning_rate_rewinds_and_ends_with_the_run(fit, rewind, tmp_path):
    fit(rewind)
    found = rates(tmp_path)
    scheduled = [0.05 * (1 - step / 100) for step in range(STEPS + 1)]
    for step in range(1, END):
        assert found[step] == pytest.approx(scheduled[step])
    assert found[END] == pytest.approx(scheduled[WARMUP])
    assert found[STEPS] == pytest.approx(scheduled[STEPS])
    for step in range(END + 1, STEPS + 1):
        even = WARMUP + (step - END) * (STEPS - WARMUP) // (STEPS - END)
        assert found[step] == pytest.approx(scheduled[even])


def test_weights_rewind_to_the_end_of_the_warm_up_where_they_are_kept(fit, tmp_path):
    fit("weights")
    early = torch.load(tmp_path / f"step={WARMUP}.ckpt", weights_only=True)["state_dict"]
    late = torch.load(tmp_path / f"step={END}.ckpt", weights_only=True)
    pruned = 0
    for name, value in late["state_dict"].items():
        kept = value != 0
        assert torch.equal(value[kept], early[name][kept])
        pruned += int((~kept).sum())
    assert pruned == round(0.7 * 416)
    assert late["optimizer_states"][0]["state"] == {}
    assert late["callbacks"]["IterativeMagnitudePruning"]["before_pruning"] == {}


def test_without_rewinding_weights_and_rate_continue(fit, tmp_path):
    fit(None)
    found = rates(tmp_path)
    assert found[STEPS] == pytest.approx(0.05 * (1 - STEPS / 100))
    assert found[END] == pytest.approx(0.05 * (1 - END / 100))
    before = torch.load(tmp_path / f"step={WARMUP}.ckpt", weights_only=True)
    assert before["callbacks"]["IterativeMagnitudePruning"]["before_pruning"] == {}
