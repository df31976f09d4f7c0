import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_compress.callbacks import IterativeMagnitudePruning
from lightning_compress.errors import InputError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "sparsity: give the fraction"),
        ({"sparsity": 1.0}, r"sparsity: 1.0 is not in \[0, 1\)"),
        ({"sparsity": -0.1}, "sparsity: -0.1"),
        ({"sparsity": 80}, "sparsity: 80"),
        ({"pattern": "4:2"}, "pattern: '4:2' is not n:m"),
        ({"sparsity": 0.8, "pattern": "2:4"}, "contradicts pattern: 2:4"),
        ({"sparsity": 0.8, "warmup": 1.5}, "warmup: 1.5 is more than the whole run"),
        ({"sparsity": 0.8, "unit": "steps", "interval": 0.1}, "interval: 0.1 is not an integer"),
        ({"sparsity": 0.8, "schedule": "one_shot", "recovery": 0.1}, "recovery: has no meaning"),
        ({"sparsity": 0.8, "schedule": "one_shot", "rewind": "weights"}, "rewind: one_shot"),
    ],
)
def test_invalid_options_are_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        IterativeMagnitudePruning(**options)


class Endless(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    def __iter__(self):
        while True:
            yield torch.randn(8), torch.randn(2)


def refused(trainer, module, data, message):
    """The fit ends before the first batch, by an error with this message."""
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(InputError, match=message):
        trainer.fit(module, data)
    assert trainer.global_step == 0
    assert trainer.fit_loop.total_batch_idx == -1
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def pruning(**options):
    return IterativeMagnitudePruning(**{"sparsity": 0.5, "weights": ["net.*.weight"], **options})


@pytest.mark.parametrize(
    ("options", "trainer", "message"),
    [
        ({"warmup": 4, "recovery": 5, "unit": "steps"}, {}, "does not fit into the run's 8 steps"),
        ({"warmup": 1, "recovery": 0, "unit": "epochs"}, {}, "8 steps of warmup and 0 of recovery"),
        ({"warmup": 9, "unit": "steps", "schedule": "one_shot"}, {}, "more than the run's 8"),
        ({"warmup": 3, "recovery": 2, "interval": 1, "unit": "steps"}, {"max_steps": 5}, "5 steps"),
        ({"recovery": 5, "unit": "steps"}, {"accumulate_grad_batches": 2}, "run's 4 steps"),
        ({}, {"max_epochs": -1}, "trainer.max_steps"),
    ],
)
def test_a_schedule_that_does_not_fit_the_run(
    plain_module, loader, quiet_trainer, options, trainer, message
):
    built = quiet_trainer(**{"max_epochs": 1, "callbacks": [pruning(**options)], **trainer})
    refused(built, plain_module(), loader(), message)


def test_epochs_of_data_without_a_length(plain_module, quiet_trainer):
    trainer = quiet_trainer(max_steps=10, callbacks=[pruning(unit="epochs", warmup=1)])
    refused(trainer, plain_module(), DataLoader(Endless(), 4), "unit: epochs")


def test_data_without_a_length_are_fine_with_steps(plain_module, quiet_trainer):
    callback = pruning()
    trainer = quiet_trainer(max_steps=10, callbacks=[callback])
    trainer.fit(plain_module(), DataLoader(Endless(), 4))
    assert callback.target_reached


def test_no_weight_matched(plain_module, loader, quiet_trainer):
    trainer = quiet_trainer(max_epochs=1, callbacks=[pruning(weights=["encoder.*"])])
    refused(trainer, plain_module(), loader(), r"'encoder\.\*' matches no parameter(.|\n)*net\.0")


def test_no_weight_named_and_no_known_model(plain_module, loader, quiet_trainer):
    trainer = quiet_trainer(max_epochs=1, callbacks=[pruning(weights=None)])
    refused(trainer, plain_module(), loader(), "Name the weights yourself")


def test_inputs_that_do_not_divide(plain_module, loader, quiet_trainer):
    callback = IterativeMagnitudePruning(weights=["net.*.weight"], pattern="1:3")
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback])
    refused(trainer, plain_module(), loader(), "net.0.weight has 8 inputs")


def test_given_twice(plain_module, loader, quiet_trainer):
    trainer = quiet_trainer(max_epochs=1, callbacks=[pruning()])
    trainer.callbacks.append(pruning(sparsity=0.6))
    refused(trainer, plain_module(), loader(), "given twice")


@pytest.mark.parametrize("schedule", [None, "epoch", "plateau"])
def test_rewinding_needs_a_learning_rate_that_moves_by_step(
    plain_module, loader, quiet_trainer, schedule
):
    trainer = quiet_trainer(max_epochs=1, callbacks=[pruning(rewind="learning_rate")])
    refused(trainer, plain_module(schedule=schedule), loader(), "rewind: needs a learning-rate")


def test_rewinding_is_not_for_manual_optimization(plain_module, loader, quiet_trainer):
    module = plain_module(schedule="step")
    module.automatic_optimization = False
    trainer = quiet_trainer(max_epochs=1, callbacks=[pruning(rewind="weights")])
    refused(trainer, module, loader(), "rewind: with manual optimization")


def test_weights_that_are_not_finite_stop_the_run_by_name(plain_module, loader, quiet_trainer):
    class Diverge(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:  # when the first update is due
                nn.init.constant_(pl_module.net[2].weight, torch.nan)

    trainer = quiet_trainer(max_epochs=1, callbacks=[Diverge(), pruning(interval=0.2)])
    with pytest.raises(InputError, match=r"'net\.2\.weight' holds NaN"):
        trainer.fit(plain_module(), loader())
