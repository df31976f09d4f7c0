"""What a run leaves in TensorBoard beside its curves."""

import inspect
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_compress.evaluation.report.rendering import markdown
from lightning_compress.evaluation.report.report import Report

_PLAIN = (bool, int, float, str)


def log_layout(
    trainer: L.Trainer, pl_module: L.LightningModule, metric: str, *, share: bool
) -> None:
    """Make a page with what the run's techniques chart, by their ``charts``, over the metric.

    Args:
        trainer: of the run; one that compresses nothing gets no page.
        pl_module: may have ``charts`` too.
        metric: of the validation.
        share: it lies between 0 and 1 like the sparsity, so the two go in one chart.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set dynamically
    charts: dict[str, list[str]] = {
        title: [tags] if isinstance(tags, str) else tags
        for one in (pl_module, *callbacks)
        for title, tags in getattr(one, "charts", {}).items()
    }
    if not charts:
        return
    if share and "sparsity" in charts:
        charts = {f"sparsity and {metric}": [*charts.pop("sparsity"), f"^{metric}$"], **charts}
    elif not any(f"^{metric}$" in tags for tags in charts.values()):
        charts[metric] = [f"^{metric}$"]
    page = {"Compression": {title: ["Multiline", tags] for title, tags in charts.items()}}
    for logger in tensorboard_loggers(trainer):
        logger.experiment.add_custom_scalars(page)


def log_final(trainer: L.Trainer, pl_module: L.LightningModule, report: Report) -> None:
    """Log the report as text, and the hyperparameters with the figures that they led to."""
    # The first row of the model that was trained: in the first runtime and precision asked for.
    row = next(row for row in report.rows if row.model == report.rows[-1].model)
    figures: dict[str, float | None] = {
        **row.metrics,
        "retention": row.retention,
        "speedup": row.speedup,
        "nonzero_parameters": row.nonzero_parameters,
        "macs": row.macs,
        "size_bytes": row.size_bytes,
    }
    for logger in tensorboard_loggers(trainer):
        logger.experiment.add_text("report", markdown(report), trainer.global_step)
        logger.log_hyperparams(
            _hyperparameters(trainer, pl_module),
            {f"final/{name}": value for name, value in figures.items() if value is not None},
            trainer.global_step,
        )


def tensorboard_loggers(trainer: L.Trainer) -> list[TensorBoardLogger]:
    """The run's TensorBoard loggers, on the process that writes."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _hyperparameters(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
    """Options of the module, the data module and this project's callbacks, nested.

    Those that were left out are not there: TensorBoard makes a column of each, and shows the first.
    """
    data = getattr(trainer, "datamodule", None)
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set dynamically
    return {
        **_given(pl_module.hparams),
        **({"data": _given(data.hparams)} if data is not None else {}),
        **{
            type(callback).__name__: _options(callback)
            for callback in callbacks
            if type(callback).__module__.startswith("lightning_compress.")
        },
    }


def _options(callback: L.Callback) -> dict[str, Any]:
    """What a callback was told: its ``hparams``, or the arguments kept under their own names."""
    names = inspect.signature(type(callback).__init__).parameters
    attributes = {name: getattr(callback, name, None) for name in names if name != "self"}
    options = _given(getattr(callback, "hparams", attributes))
    return {name: value for name, value in options.items() if isinstance(value, _PLAIN)}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
