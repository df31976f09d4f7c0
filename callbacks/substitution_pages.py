"""What TensorBoard shows of substituted encoder blocks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning as L

from lightning_compress.models.linear import linear_at
from lightning_compress.models.structure import structure_of

from .tensorboard_pages import tensorboard_loggers

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel


def log_matching(
    trainer: L.Trainer, group: Sequence[int], curve: Sequence[float], kept: float | None
) -> None:
    """Log how a compact encoder learned, and the variance that its down-projection keeps.

    Args:
        trainer: of the run.
        group: the layers it replaces.
        curve: its error at each step of matching.
        kept: the share of the variance; None where that is not known.
    """
    name = "layers " + "-".join(str(layer) for layer in (group[0], group[-1]))
    for logger in trainer.loggers:
        for step, error in enumerate(curve):
            logger.log_metrics({f"matching error/{name}": error}, step)
        if kept is not None:
            logger.log_metrics({f"explained variance/{name}": kept}, trainer.global_step)


def log_substitution(
    trainer: L.Trainer,
    model: "PreTrainedModel",
    groups: Sequence[Sequence[int]],
    width: int,
    depth: int,
) -> None:
    """Log a picture of which layers are replaced, and what they and their substitutes cost.

    Args:
        trainer: of the run.
        model: before its layers are replaced.
        groups: of layers.
        width: of the compact encoders.
        depth: of the compact encoders.
    """
    structure = structure_of(model)
    sizes = {name: linear_at(model, name).weight.numel() for name in structure.linear_names()}
    costs = [
        sum(size for name, size in sizes.items() if name.startswith(f"{layer}."))
        for layer in structure.layers
    ]
    # Four projections and two of four times the width, between those down and up.
    compact = 2 * int(model.config.hidden_size) * width + depth * 12 * width**2
    for board in tensorboard_loggers(trainer):
        figure = substitution_figure(costs, groups, compact)
        board.experiment.add_figure("substituted layers", figure, trainer.global_step)


def substitution_figure(
    costs: Sequence[int], groups: Sequence[Sequence[int]], compact: int
) -> "Figure":
    """Layers and their share of the multiplications by weights; what replaces them beside them."""
    from matplotlib.figure import Figure

    whole = sum(costs)
    replaced = {layer for group in groups for layer in group}
    figure = Figure(figsize=(6, 1.5 + 0.3 * len(costs)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["0.8" if layer in replaced else "C0" for layer in range(len(costs))]
    axes.barh(range(len(costs)), [100 * cost / whole for cost in costs], color=colours)
    for group in groups:
        middle = (group[0] + group[-1]) / 2
        (bar,) = axes.barh([middle], [100 * compact / whole], height=0.5, color="C1")
        axes.annotate(
            f"{100 * compact / whole:.1f} %",
            (bar.get_width(), middle),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    left = whole - sum(costs[layer] for layer in replaced) + len(groups) * compact
    axes.set(
        xlabel="share of the multiplications by weights, %",
        ylabel="layer",
        title=f"{len(replaced)} of {len(costs)} layers substituted: {left / whole:.0%} remain",
    )
    axes.set_yticks(range(len(costs)))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure
