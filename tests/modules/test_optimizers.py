"""Optimizers and schedules against formulas and torch's own."""

import functools
import math

import jsonargparse
import lightning as L
import pytest
import torch
from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.modules import FineTuningModule
from lightning_compress.modules.optimizers import (
    adamw,
    optimizer_factory,
    optimizer_spec,
    optimizer_with,
    scheduled,
)


def rates(schedule, warmup, steps, **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=2.0)
    scheduler = scheduled(optimizer, schedule, warmup, steps, options)
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen, scheduler.get_last_lr()[0]


def by_formula(schedule, step, rise, steps):
    if step < rise:
        return (step + 1) / (rise + 1)
    left = max(0.0, (steps - step) / max(1, steps - rise))
    return left if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 20, 333])
def test_linear_is_bit_for_bit_the_formula_and_cosine_to_rounding(warmup, steps):
    for schedule, tolerance in (("linear", 0.0), ("cosine", 1e-14)):
        seen, end = rates(schedule, warmup, steps)
        rise = round(warmup * steps)
        expected = [2 * by_formula(schedule, step, rise, steps) for step in range(steps)]
        assert seen == pytest.approx(expected, rel=0, abs=tolerance)
        if rise < steps:
            assert end == pytest.approx(0, abs=tolerance)


@pytest.mark.parametrize(
    ("schedule", "options", "end"),
    [
        ("polynomial", {"power": 2.0, "lr_end": 0.5}, 0.5),
        ("cosine_with_min_lr", {"min_lr": 0.25}, 0.25),
        ("cosine_with_restarts", {"num_cycles": 2}, 0.0),
        ("constant_with_warmup", {}, 2.0),
        ("constant", {}, 2.0),
        ("warmup_stable_decay", {"num_decay_steps": 5}, 0.0),
    ],
)
def test_schedules_of_transformers_end_where_their_options_say(schedule, options, end):
    seen, last = rates(schedule, 0.2, 20, **options)
    assert max(seen) == pytest.approx(2.0)
    assert last == pytest.approx(end, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "zigzag"}, "model.schedule.*zigzag.*linear"),
        ({"schedule": "reduce_lr_on_plateau"}, "model.schedule.*follows a metric"),
        ({"schedule": "cosine_with_min_lr"}, "model.schedule.*min_lr"),
        ({"schedule": "polynomial", "schedule_options": {"power": 1, "colour": 2}}, "colour"),
        ({"warmup": 1.5}, "model.warmup"),
        ({"optimizer": lambda groups: None}, "model.optimizer must be"),
    ],
)
def test_wrong_options_fail_before_training(options, message):
    with pytest.raises(InputError, match=message):
        FineTuningModule(**options)


def test_any_optimizer_gets_rate_decay_and_exclusions(tiny_bert):
    sgd = functools.partial(torch.optim.SGD, momentum=0.9, lr=7.0, weight_decay=5.0)
    optimizer = optimizer_with(optimizer_factory(optimizer_spec(sgd)), tiny_bert, 1e-3, 0.1)
    assert isinstance(optimizer, torch.optim.SGD)
    reference = adamw(tiny_bert, 1e-3, 0.1)
    for group, expected in zip(optimizer.param_groups, reference.param_groups, strict=True):
        assert (group["lr"], group["momentum"]) == (1e-3, 0.9)
        assert group["weight_decay"] == expected["weight_decay"]
        assert [id(one) for one in group["params"]] == [id(one) for one in expected["params"]]
    rprop = optimizer_with(torch.optim.Rprop, tiny_bert, 1e-3, 0.1)
    assert all("weight_decay" not in group for group in rprop.param_groups)
    with pytest.raises(InputError, match=r"model\.optimizer does not work.*momentum"):
        optimizer_with(functools.partial(torch.optim.SGD, momentum=-1), tiny_bert, 1e-3, 0.1)


def test_a_checkpoint_keeps_the_optimizer(tmp_path, quiet_trainer, toy_data):
    config = {
        "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 8, "vocab_size": 100, "max_position_embeddings": 16,
    }  # fmt: skip
    L.seed_everything(0)
    module = FineTuningModule(
        config=config, optimizer=functools.partial(torch.optim.SGD, momentum=0.5), learning_rate=0.1
    )
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, datamodule=toy_data)
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = FineTuningModule.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    described = {"class_path": "torch.optim.sgd.SGD", "init_args": {"momentum": 0.5}}
    assert again.hparams["optimizer"] == module.hparams["optimizer"] == described
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(again, datamodule=toy_data)
    assert trainer.optimizers[0].param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize(("warmup", "steps"), [(-0.1, 5), (1.1, 5), (0.1, float("inf"))])
def test_what_does_not_work_is_named(warmup, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=2.0)
    with pytest.raises(InputError, match=r"model\.warmup|trainer\.max_epochs"):
        scheduled(optimizer, "linear", warmup, steps)


def test_only_matrices_decay_and_frozen_weights_are_left_out(tiny_bert):
    tiny_bert.bert.embeddings.requires_grad_(False)
    decayed, spared = adamw(tiny_bert, 1e-3, 0.1).param_groups
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    names = {id(weight): name for name, weight in tiny_bert.named_parameters()}
    assert all("bias" in names[id(w)] or "LayerNorm" in names[id(w)] for w in spared["params"])
    assert all(names[id(w)].endswith("weight") for w in decayed["params"])
    seen = {id(w) for group in (decayed, spared) for w in group["params"]}
    assert seen == {id(w) for w in tiny_bert.parameters() if w.requires_grad}


def test_a_yaml_file_chooses_an_optimizer():
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(L.LightningModule, "model")
    chosen = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
    path = "lightning_compress.modules.FineTuningModule"
    options = {"model": {"class_path": path, "init_args": {"optimizer": chosen}}}
    module = parser.instantiate_classes(parser.parse_object(options)).model
    optimizer = optimizer_factory(module.hparams["optimizer"])([nn.Parameter(torch.ones(1))])
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9
