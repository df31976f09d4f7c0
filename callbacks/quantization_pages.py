"""What the log and TensorBoard show of quantization."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import lightning as L

from lightning_compress.quantization import Coverage

from .run_folder import run_folder
from .tensorboard_pages import tensorboard_loggers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BARS = 40


def log_quantization(trainer: L.Trainer, coverage: Coverage, moved: Mapping[str, float]) -> None:
    """Log how much is quantized and, where it was measured, how much each module's rounding moves.

    The chart of that also becomes ``sensitivity.png`` in the run's folder, which the report shows.

    Args:
        trainer: of the run.
        coverage: of the quantized model.
        moved: divergence by name of the module, the largest first; empty if not measured.
    """
    for logger in trainer.loggers:
        logger.log_metrics({"quantized parameters": coverage.share}, trainer.global_step)
    if not moved:
        return
    figure, folder = sensitivity_figure(moved, coverage), run_folder(trainer)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "sensitivity.png", dpi=100)
    for board in tensorboard_loggers(trainer):
        board.experiment.add_figure("sensitivity to rounding", figure, trainer.global_step)


def sensitivity_figure(moved: Mapping[str, float], coverage: Coverage) -> "Figure":
    """A bar for each module, those that stay in floating point in another colour."""
    from matplotlib.figure import Figure

    shown = dict(list(moved.items())[:_BARS])
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["C1" if name in coverage.kept else "C0" for name in shown]
    axes.barh(list(shown), list(shown.values()), color=colours)
    axes.invert_yaxis()
    axes.set(xlabel="divergence of the predictions, nats", xscale="log")
    axes.set_title("rounded alone (orange: stays in floating point)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=7)
    return figure


def said_of(scheme: str, coverage: Coverage) -> str:
    """Coverage in words: how much, and what stays."""
    reasons: dict[str, list[str]] = {}
    for name, reason in coverage.kept.items():
        reasons.setdefault(reason, []).append(name)
    kept = "; ".join(
        f"{', '.join(names) if len(names) < 4 else len(names)} ({reason})"
        for reason, names in reasons.items()
    )
    rest = f"; not {kept}" if kept else ""
    return f"Quantized to {scheme}: {coverage.share:.1%} of the parameters{rest}."
