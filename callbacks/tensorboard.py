"""TensorBoard beside the curves: the page of charts, the report and the hyperparameters."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_compress.evaluation.report.columns import hyperparameter_metrics
from lightning_compress.evaluation.report.rendering import markdown
from lightning_compress.evaluation.report.report import Report
from lightning_compress.types import Chart, DeclaresCharts

from .run import callbacks_of

_PLAIN = (bool, int, float, str)


def log_charts(
    trainer: L.Trainer, pl_module: L.LightningModule, metric: str, *, metric_is_fraction: bool
) -> None:
    """Lay out the page *Compression* with the charts that module and callbacks declare.

    Args:
        trainer: of the run; without any declared chart there is no page.
        pl_module: the module.
        metric: name of the validation metric, which is shown beside the techniques' values.
        metric_is_fraction: whether the metric lies in [0, 1], so that it can share a chart with
            values in [0, 1] such as sparsity.
    """
    declared = [
        chart
        for one in (pl_module, *callbacks_of(trainer))
        if isinstance(one, DeclaresCharts)
        for chart in one.charts
    ]
    if not declared:
        return
    tag = f"^{metric}$"
    shared = [chart for chart in declared if chart.with_metric and metric_is_fraction]
    charts = [
        *(Chart(f"{chart.title} and {metric}", (*chart.tags, tag)) for chart in shared),
        *(chart for chart in declared if chart not in shared),
    ]
    if not any(tag in chart.tags for chart in charts):
        charts.append(Chart(metric, (tag,)))
    page = {"Compression": {chart.title: ["Multiline", list(chart.tags)] for chart in charts}}
    for logger in tensorboard_loggers(trainer):
        logger.experiment.add_custom_scalars(page)


def log_final(trainer: L.Trainer, pl_module: L.LightningModule, report: Report) -> None:
    """Log the report as text, and the hyperparameters with the final metrics."""
    # The first row of the trained model: in the first runtime and precision.
    row = next(row for row in report.rows if row.model == report.rows[-1].model)
    values = hyperparameter_metrics(report, row)
    for logger in tensorboard_loggers(trainer):
        logger.experiment.add_text("report", markdown(report), trainer.global_step)
        logger.log_hyperparams(
            _hyperparameters(trainer, pl_module),
            {f"final/{name}": value for name, value in values.items()},
            trainer.global_step,
        )


def tensorboard_loggers(trainer: L.Trainer) -> list[TensorBoardLogger]:
    """The run's TensorBoard loggers; none on ranks other than 0."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _hyperparameters(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
    """Options of the module, the data module and this project's callbacks, nested.

    Without those that are None: TensorBoard makes a column of each, and shows the first ones.
    """
    data = getattr(trainer, "datamodule", None)
    return {
        **_given(pl_module.hparams),
        **({"data": _given(data.hparams)} if data is not None else {}),
        **{
            type(callback).__name__: _options(callback)
            for callback in callbacks_of(trainer)
            if type(callback).__module__.startswith("lightning_compress.")
        },
    }


def _options(callback: L.Callback) -> dict[str, Any]:
    """Options of a callback: its ``hparams``, or attributes named like its arguments."""
    names = inspect.signature(type(callback).__init__).parameters
    attributes = {name: getattr(callback, name, None) for name in names if name != "self"}
    options = _given(getattr(callback, "hparams", attributes))
    for name, value in list(options.items()):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = _given(dataclasses.asdict(value))
            options |= {f"{name}/{field}": item for field, item in fields.items()}
    return {name: value for name, value in options.items() if isinstance(value, _PLAIN)}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
