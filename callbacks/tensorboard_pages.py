"""What a run leaves in TensorBoard beside its curves."""

import inspect
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_compress.evaluation.rendering import markdown
from lightning_compress.evaluation.report import Report

_PLAIN = (bool, int, float, str, type(None))


def log_layout(trainer: L.Trainer, metric: str) -> None:
    """Make a page with one chart of the total sparsity and the validation metric."""
    chart = ["Multiline", ["^sparsity/total$", f"^{metric}$"]]
    for logger in _loggers(trainer):
        logger.experiment.add_custom_scalars({"Compression": {f"sparsity and {metric}": chart}})


def log_final(trainer: L.Trainer, pl_module: L.LightningModule, report: Report) -> None:
    """Log the report as text, and the hyperparameters with the figures that they led to."""
    # The first row of the model that was trained: in the first runtime and precision asked for.
    row = next(row for row in report.rows if row.model == report.rows[-1].model)
    figures: dict[str, float | None] = {
        **row.metrics,
        "retention": row.retention,
        "speedup": row.speedup,
        "size_bytes": row.size_bytes,
    }
    for logger in _loggers(trainer):
        logger.experiment.add_text("report", markdown(report), trainer.global_step)
        logger.log_hyperparams(
            _hyperparameters(trainer, pl_module),
            {f"final/{name}": value for name, value in figures.items() if value is not None},
            trainer.global_step,
        )


def _loggers(trainer: L.Trainer) -> list[TensorBoardLogger]:
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _hyperparameters(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
    """Options of the module, the data module and this project's callbacks, nested."""
    data = getattr(trainer, "datamodule", None)
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set dynamically
    return {
        **pl_module.hparams,
        **({"data": dict(data.hparams)} if data is not None else {}),
        **{
            type(callback).__name__: _options(callback)
            for callback in callbacks
            if type(callback).__module__.startswith("lightning_compress.")
        },
    }


def _options(callback: L.Callback) -> dict[str, Any]:
    """The constructor's arguments that are plain values and kept under their own names."""
    names = inspect.signature(type(callback).__init__).parameters
    options = {name: getattr(callback, name, ...) for name in names if name != "self"}
    return {name: value for name, value in options.items() if isinstance(value, _PLAIN)}
