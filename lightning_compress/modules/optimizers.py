"""The optimizer of a module, with decay exclusions, and its learning rate schedule.

Schedules are those of ``transformers.get_scheduler``.
"""

import functools
import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_compress.errors import InputError, first_line


def optimizer_for(
    model: nn.Module, spec: Mapping[str, Any] | None, learning_rate: float, weight_decay: float
) -> Optimizer:
    """The optimizer of a description, see :func:`optimizer_spec`; AdamW without one."""
    if spec is None:
        return adamw(model, learning_rate, weight_decay)
    return optimizer_with(optimizer_factory(spec), model, learning_rate, weight_decay)


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> AdamW:
    """Build AdamW over the trainable parameters; vectors (biases, norms) are not decayed.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019,
    https://arxiv.org/abs/1711.05101.
    """
    matrices, vectors = _matrices_and_vectors(model)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # On the CPU the fused kernel is several times faster. On CUDA Lightning refuses to clip
    # gradients under fp16 with it, and the default kernel is as good.
    fused = all(weight.device == torch.device("cpu") for weight in (*matrices, *vectors))
    return AdamW(groups, lr=learning_rate, fused=fused or None)


def optimizer_with(
    factory: OptimizerCallable, model: nn.Module, learning_rate: float, weight_decay: float
) -> Optimizer:
    """Build an optimizer over the trainable parameters; vectors (biases, norms) are not decayed.

    Args:
        factory: makes the optimizer from parameter groups.
        model: module with the parameters.
        learning_rate: replaces that of the factory.
        weight_decay: of matrices; replaces that of the factory, if the optimizer has one.

    Raises:
        InputError: the optimizer refuses its arguments or parameter groups.
    """
    groups = [{"params": weights} for weights in _matrices_and_vectors(model) if weights]
    try:
        optimizer = factory(groups)
    except (TypeError, ValueError) as error:
        raise InputError(f"model.optimizer does not work: {first_line(error)}") from error
    optimizer.defaults["lr"] = learning_rate
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if "weight_decay" in group:
            group["weight_decay"] = weight_decay if group["params"][0].ndim >= 2 else 0.0
    return optimizer


def _matrices_and_vectors(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    return [w for w in trainable if w.ndim >= 2], [w for w in trainable if w.ndim < 2]


def optimizer_spec(optimizer: Any) -> dict[str, Any]:
    """Describe an optimizer factory by ``class_path`` and ``init_args``, as in a YAML file.

    Args:
        optimizer: an optimizer class, a ``functools.partial`` of one, or a description.

    Raises:
        InputError: it is something else, which no checkpoint could hold.
    """
    if isinstance(optimizer, Mapping):
        return dict(optimizer)
    options: dict[str, Any] = {}
    if isinstance(optimizer, functools.partial):
        options = dict(optimizer.keywords)
        # jsonargparse makes a partial of a function that takes the class as its last argument.
        optimizer = optimizer.args[-1] if optimizer.args else optimizer.func
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        raise InputError(
            "model.optimizer must be an optimizer class, or functools.partial of one with keyword "
            f"arguments, which a checkpoint can hold, not {optimizer!r}"
        )
    return {"class_path": f"{optimizer.__module__}.{optimizer.__qualname__}", "init_args": options}


def optimizer_factory(spec: Mapping[str, Any]) -> OptimizerCallable:
    """Build the factory that :func:`optimizer_spec` describes."""
    module, _, name = str(spec["class_path"]).rpartition(".")
    return functools.partial(getattr(import_module(module), name), **spec.get("init_args", {}))


def schedule_factor(
    schedule: str,
    options: Mapping[str, Any] | None = None,
    *,
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
) -> Callable[[int], float]:
    """Return the learning rate at a step as a fraction of its peak.

    Args:
        schedule: name of a schedule of ``transformers.get_scheduler``.
        options: further arguments of the schedule.
        learning_rate: peak.
        warmup_steps: steps over which it rises.
        total_steps: optimizer steps of the whole run.

    Raises:
        InputError: there is no such schedule, it needs a metric, or its options do not work.
    """
    from transformers import get_scheduler

    peak = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=learning_rate)
    try:
        # One step more and one ahead: transformers wastes the first step on a rate of zero.
        made = get_scheduler(
            schedule,
            peak,
            num_warmup_steps=warmup_steps + 1,
            num_training_steps=total_steps + 1,
            scheduler_specific_kwargs=dict(options or {}),
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"model.schedule: {first_line(error)}") from error
    if not isinstance(made, LambdaLR):
        raise InputError(f"model.schedule: {schedule} follows a metric: choose another schedule")
    factor = made.lr_lambdas[0]
    return lambda step: float(factor(step + 1))


def scheduled(
    optimizer: Optimizer,
    schedule: str,
    warmup: float,
    total_steps: int | float,
    options: Mapping[str, Any] | None = None,
) -> LambdaLR:
    """Let the learning rate rise linearly over the warm-up, then follow the schedule.

    Args:
        optimizer: its learning rate is the peak.
        schedule: see :func:`schedule_factor`.
        warmup: fraction of the steps over which the learning rate rises, in [0, 1].
        total_steps: optimizer steps of the whole run.
        options: further arguments of the schedule.

    Raises:
        InputError: ``warmup`` is outside [0, 1], the run has no end, or the schedule does not work.
    """
    check_warmup(warmup)
    if math.isinf(total_steps):
        raise InputError(
            "the learning rate follows the length of the run, and this run has no end: set "
            "trainer.max_epochs or trainer.max_steps"
        )
    factor = schedule_factor(
        schedule,
        options,
        learning_rate=optimizer.defaults["lr"],
        warmup_steps=round(warmup * total_steps),
        total_steps=int(total_steps),
    )
    return LambdaLR(optimizer, factor)


def check_warmup(warmup: float) -> None:
    """Check the fraction of the run over which the learning rate rises.

    Raises:
        InputError: it is outside [0, 1].
    """
    if not 0 <= warmup <= 1:
        raise InputError(f"model.warmup is a fraction of the run in [0, 1], not {warmup}")
