"""What TensorBoard shows of heads and neurons."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import lightning as L
import numpy as np
from torch import Tensor

from lightning_compress.models.history import units_left
from lightning_compress.models.structure import UnitKind, Units, units_of

from .tensorboard_pages import tensorboard_loggers

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel


def log_scores(
    trainer: L.Trainer, units: Sequence[Units], scores: Mapping[str, Tensor], step: int
) -> None:
    """Log histograms of the importance of each layer's units."""
    for logger in tensorboard_loggers(trainer):
        for one in units:
            tag = f"importance of {one.kind}/layer {one.layer}"
            logger.experiment.add_histogram(tag, scores[one.output], step)


def log_remaining(
    trainer: L.Trainer, model: "PreTrainedModel", kinds: Sequence[UnitKind], step: int
) -> None:
    """Log how many units each layer has, and a picture of them."""
    for kind in kinds:
        units = units_of(model, kind)
        counts = {f"{kind}/layer {one.layer}": one.count for one in units}
        for logger in trainer.loggers:
            logger.log_metrics({**counts, f"{kind}/total": sum(counts.values())}, step)
        for board in tensorboard_loggers(trainer):
            draw = heads_figure if kind == "heads" else widths_figure
            board.experiment.add_figure(f"remaining {kind}", draw(units_left(model, kind)), step)


def heads_figure(left: Sequence[Sequence[int] | None]) -> "Figure":
    """Layers by heads: which are left."""
    from matplotlib.figure import Figure

    width = 1 + max(max(heads, default=0) for heads in left if heads is not None)
    grid = np.zeros((len(left), width))
    for row, heads in zip(grid, left, strict=True):
        row[list(heads or [])] = 1
    figure = Figure(figsize=(2 + 0.35 * width, 1.5 + 0.3 * len(left)), layout="constrained")
    axes = figure.add_subplot()
    axes.pcolormesh(grid, cmap="Blues", vmin=0, vmax=1.3, edgecolors="white", linewidth=2)
    axes.set(xlabel="head", ylabel="layer", title=f"{int(grid.sum())} heads remain")
    axes.set_xticks(np.arange(width) + 0.5, [str(head) for head in range(width)])
    axes.set_yticks(np.arange(len(left)) + 0.5, _numbers(left))
    axes.invert_yaxis()
    axes.set_aspect("equal")
    return figure


def widths_figure(left: Sequence[Sequence[int] | None]) -> "Figure":
    """How many neurons each layer has."""
    from matplotlib.figure import Figure

    widths = [len(neurons or []) for neurons in left]
    figure = Figure(figsize=(5, 1.5 + 0.3 * len(left)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(range(len(left)), widths)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.margins(x=0.15)
    axes.set(xlabel="neurons", ylabel="layer", title=f"{sum(widths):,} neurons remain")
    axes.set_yticks(range(len(left)), _numbers(left))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _numbers(layers: Sequence[object]) -> list[str]:
    return [str(layer) for layer in range(len(layers))]
