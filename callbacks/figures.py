"""What a run logs of its technique beside scalars: figures, histograms and learning curves.

Heads and neurons first, then quantization, then substitution. A function ``log_...`` writes to the
run's loggers, a function ``..._figure`` draws. Images that the report shows are files in the run's
folder with a name in :data:`RUN_FIGURES`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import numpy as np
from torch import Tensor

from lightning_compress.models.families import UnitKind
from lightning_compress.models.removal import surviving_units
from lightning_compress.models.structure import Units, linear_at, structure_of, units_of
from lightning_compress.quantization import Coverage
from lightning_compress.substitution.block_distillation import FitResult

from .run import run_folder
from .tensorboard import tensorboard_loggers

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel

SENSITIVITY = "sensitivity.png"
#: Images that callbacks write to the run's folder, which the report shows.
RUN_FIGURES = (SENSITIVITY,)

_BARS = 40  # of the chart of sensitivities, at most


def run_figures(folder: Path) -> list[Path]:
    """The images of :data:`RUN_FIGURES` that a run has written."""
    return [folder / name for name in RUN_FIGURES if (folder / name).is_file()]


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
    """Log the number of units of each layer, and a figure of them."""
    for kind in kinds:
        units = units_of(model, kind)
        counts = {f"{kind}/layer {one.layer}": one.count for one in units}
        for logger in trainer.loggers:
            logger.log_metrics({**counts, f"{kind}/total": sum(counts.values())}, step)
        for board in tensorboard_loggers(trainer):
            draw = heads_figure if kind == "heads" else widths_figure
            board.experiment.add_figure(
                f"remaining {kind}", draw(surviving_units(model, kind)), step
            )


def heads_figure(left: Sequence[Sequence[int] | None]) -> "Figure":
    """Draw the grid of layers and heads, with the remaining heads filled.

    Args:
        left: for each layer of the dense model the indices of its remaining heads; None for a layer
            that was removed.
    """
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
    """Draw a bar for each layer with its number of remaining neurons.

    Args:
        left: for each layer of the dense model the indices of its remaining neurons; None for a
            layer that was removed.
    """
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


def log_quantization(
    trainer: L.Trainer, coverage: Coverage, divergences: Mapping[str, float]
) -> None:
    """Log how much of a model is quantized, and each module's sensitivity where it was measured.

    The chart of the sensitivities is also written to ``sensitivity.png`` in the run's folder,
    from where the report takes it.

    Args:
        trainer: of the run.
        coverage: of the quantized model.
        divergences: in nats by name of the module that alone was quantized, largest first; empty
            where they were not measured.
    """
    for logger in trainer.loggers:
        logger.log_metrics({"quantized_fraction": coverage.quantized_fraction}, trainer.global_step)
    if not divergences:
        return
    figure, folder = sensitivity_figure(divergences, coverage), run_folder(trainer)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / SENSITIVITY, dpi=100)
    for board in tensorboard_loggers(trainer):
        board.experiment.add_figure("sensitivity to quantization", figure, trainer.global_step)


def sensitivity_figure(divergences: Mapping[str, float], coverage: Coverage) -> "Figure":
    """Draw a bar for each of the 40 most sensitive modules, skipped ones in another colour."""
    from matplotlib.figure import Figure

    shown = dict(list(divergences.items())[:_BARS])
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["C1" if name in coverage.skipped else "C0" for name in shown]
    axes.barh(list(shown), list(shown.values()), color=colours)
    axes.invert_yaxis()
    axes.set(xlabel="KL divergence of the predictions, nats", xscale="log")
    axes.set_title("quantized alone (orange: skipped, stays in floating point)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=7)
    return figure


def describe_coverage(scheme: str, coverage: Coverage) -> str:
    """Describe in a sentence how much is quantized, and what is skipped and why."""
    reasons: dict[str, list[str]] = {}
    for name, reason in coverage.skipped.items():
        reasons.setdefault(reason, []).append(name)
    skipped = "; ".join(
        f"{', '.join(names) if len(names) < 4 else len(names)} ({reason})"
        for reason, names in reasons.items()
    )
    rest = f"; skipped: {skipped}" if skipped else ""
    return f"Quantized to {scheme}: {coverage.quantized_fraction:.1%} of the parameters{rest}."


def log_block_fit(trainer: L.Trainer, group: Sequence[int], result: FitResult) -> None:
    """Log the errors of block distillation and the explained variance of the down-projection.

    Args:
        trainer: of the run.
        group: the layers that the compact block replaces.
        result: how well it fits.
    """
    name = "layers " + "-".join(str(layer) for layer in (group[0], group[-1]))
    for logger in trainer.loggers:
        for step, error in enumerate(result.error_curve):
            logger.log_metrics({f"block distillation error/{name}": error}, step)
        if result.explained_variance is not None:
            explained = {f"explained variance/{name}": result.explained_variance}
            logger.log_metrics(explained, trainer.global_step)


def log_substitution(
    trainer: L.Trainer,
    model: "PreTrainedModel",
    groups: Sequence[Sequence[int]],
    width: int,
    depth: int,
) -> None:
    """Log a figure of the replaced layers and of the cost of their compact blocks.

    Args:
        trainer: of the run.
        model: before its layers are replaced.
        groups: of layers.
        width: of the compact blocks.
        depth: of the compact blocks.
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
    """Bars of each layer's fraction of the multiply-accumulates, compact blocks on top."""
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
