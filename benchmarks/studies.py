"""Shared by the studies: a Trainer that writes no files, and a figure of curves."""

import lightning as L
from matplotlib.figure import Figure


def bare_trainer(root, **options):
    """A Trainer for the CPU without logger, checkpoints and bars; ``root``: where it may write."""
    return L.Trainer(
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        **options,
    )


def save_curves(path, curves, prepare):
    """Draw a line for each method over what remains, the baselines dashed, and save the figure.

    Args:
        path: of the picture.
        curves: points (remaining share in %, value) by method.
        prepare: called with the axes first: labels, scale, what stands behind the lines.
    """
    figure = Figure(figsize=(8.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    prepare(axes)
    for method, points in curves.items():
        dashed = method in ("random", "layers")
        axes.plot(*zip(*points, strict=True), "o--" if dashed else "o-", label=method)
    axes.invert_xaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"\nfigure: {path}")
