"""``fit --resume RUN``: the recipe and the latest checkpoint of a run that has stopped."""

from collections.abc import Sequence
from pathlib import Path

from lightning_compress.callbacks.run_safety import CHECKPOINT
from lightning_compress.errors import InputError

OPTION = "--resume"
LATEST = "latest"


def with_resumed_run(arguments: Sequence[str], logs: Path = Path("logs")) -> list[str]:
    """Put the files of a run in the place of ``--resume RUN``.

    Args:
        arguments: of ``lightning-compress``, the command first.
        logs: where runs are, for ``--resume latest``.

    Raises:
        InputError: the run or its checkpoint is not there.
    """
    found = list(arguments)
    for place, argument in enumerate(found):
        name, given, value = argument.partition("=")
        if name != OPTION:
            continue
        following = found[place + 1 : place + 2]
        if not given and (not following or following[0].startswith("-")):
            raise InputError(f"{OPTION} needs the folder of a run, logs/NAME/version_N, or latest")
        run = _run_named(value if given else following[0], logs)
        files = ["--config", str(run / "config.yaml"), "--ckpt_path", str(_checkpoint_of(run))]
        # First, so that the options behind it change those of the recipe.
        rest = found[1:place] + found[place + (1 if given else 2) :]
        return [found[0], *files, *rest]
    return found


def _run_named(name: str, logs: Path) -> Path:
    """The folder of a run: as named, or the one in it that has been written last."""
    place = logs if name == LATEST else Path(name)
    recipes = [place / "config.yaml"] if (place / "config.yaml").is_file() else []
    recipes = recipes or [path for path in place.rglob("config.yaml") if _checkpoints(path.parent)]
    if not recipes:
        raise InputError(
            f"{OPTION}: there is no run with a checkpoint in {place}: name a folder such as "
            "logs/NAME/version_N, with config.yaml and checkpoints/ in it"
        )
    return max(recipes, key=lambda path: _written(_checkpoints(path.parent))).parent


def _checkpoint_of(run: Path) -> Path:
    paths = _checkpoints(run)
    if not paths:
        raise InputError(
            f"{OPTION}: {run} has no checkpoint: it stopped before the first was written. Start it "
            f"again with --config {run}/config.yaml"
        )
    latest = run / "checkpoints" / CHECKPOINT
    return latest if latest in paths else max(paths, key=lambda path: path.stat().st_mtime)


def _checkpoints(run: Path) -> list[Path]:
    """Checkpoints that training can go on from; those of compressed models are not among them."""
    found = (run / "checkpoints").glob("*.ckpt")
    return [path for path in found if path.name != "post_training.ckpt"]


def _written(paths: Sequence[Path]) -> float:
    return max((path.stat().st_mtime for path in paths), default=0.0)
