"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with this project's defaults."""

import argparse
import json
import logging
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_compress.callbacks import CompressionBenchmark, RunSafety
from lightning_compress.callbacks.model_edit import shortfalls
from lightning_compress.callbacks.run import callbacks_of, run_folder
from lightning_compress.callbacks.run_safety import check_writable
from lightning_compress.cli.mistakes import one_line, refuse_nulls
from lightning_compress.cli.predictions import lines_of
from lightning_compress.cli.resume import OPTION, with_resumed_run
from lightning_compress.data.info import DataInfo
from lightning_compress.errors import InputError
from lightning_compress.models import transformer_in
from lightning_compress.modules import FineTuningModule, NonFiniteLossError
from lightning_compress.saving import save_compressed

_DEFAULTS = {
    "model": {"class_path": "lightning_compress.modules.FineTuningModule"},
    "data": {"class_path": "lightning_compress.data.TextClassificationDataModule"},
    "trainer.logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "logs", "name": None, "default_hp_metric": False},
    },
}


# Warnings of Lightning in a run without fault, on which nobody could act.
_NOISE = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    # Lightning 2.6 on torch 2.13.
    r".*isinstance\(treespec, LeafSpec\).*",
)


_CHATTER = ("Tip: ", "Loading `train_dataloader` to estimate", "Detected KeyboardInterrupt")


class TargetNotReachedError(RuntimeError):
    """A run ended before a technique reached its target."""


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` once the run is known to start, and not when it is refused."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, but for a fit, whose options a checkpoint may refuse."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        super().setup(trainer, pl_module, "fit")


class CompressCLI(LightningCLI):
    """LightningCLI whose ``fit`` ends with the test loop and the report."""

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        """A parser that says in a line what is wrong."""
        parser = super().init_parser(**options)

        def refuse(message: str, error: Exception | None = None) -> NoReturn:
            hint = f"options: lightning-compress {' '.join(sys.argv[1:2])} --help"
            raise InputError(f"{one_line(message)} ({hint})") from error

        parser.error = refuse  # type: ignore[method-assign, assignment]  # the names of parameters
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set the classes that are meant when none is named."""
        parser.set_defaults(_DEFAULTS)
        parser.add_argument(
            OPTION,
            type=str | None,
            default=argparse.SUPPRESS,
            help="go on with a run that has stopped: its folder logs/NAME/version_N, or latest. "
            "Only of fit",
        )

    def _parse_ckpt_path(self) -> None:
        """Look at the checkpoint before anything is built; the options come from the recipe."""
        path = self._of_command("ckpt_path")
        if path and path not in ("best", "last", "hpc"):
            check_checkpoint(Path(path))

    def _of_command(self, key: str) -> Any:
        return self.config[self.config.subcommand].get(key)

    def before_instantiate_classes(self) -> None:
        """Refuse what is missing, and fill in options that follow from others."""
        for key in ("model", "data", "trainer.callbacks"):
            refuse_nulls(key, self._of_command(key))
        data, model = self._of_command("data"), self._of_command("model")
        if "tokenizer" in data.init_args and data.init_args.tokenizer is None:
            options = model.init_args
            data.init_args.tokenizer = options.get("pretrained") or options.get("teacher")
        trainer = self._of_command("trainer")
        if getattr(trainer.logger, "init_args", None) is not None:
            self._place_run(trainer.logger.init_args)
        elif trainer.logger is False and trainer.default_root_dir is None:
            # Lightning would take the working directory.
            trainer.default_root_dir = str(Path("logs", self._recipe()))

    def _recipe(self) -> str:
        """What the run is called after."""
        recipes = self._of_command("config") or []
        return Path(str(recipes[0])).stem if recipes else str(self.subcommand)

    def _place_run(self, logger: Any) -> None:
        """Name the run after its recipe; a resumed run stays in the checkpoint's folder."""
        if logger.name is None:
            logger.name = self._recipe()
        run = Path(self._of_command("ckpt_path") or "").parent.parent
        if self.subcommand == "fit" and run.name.startswith("version_"):
            logger.save_dir = str(run.parent.parent)
            logger.name, logger.version = run.parent.name, run.name

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer, with the benchmark that ends every run and what keeps it safe."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except RuntimeError as error:
            if "Found more than one stateful callback" not in str(error):
                raise
            raise InputError(
                f"trainer.callbacks: one callback is given twice, keep one of them: {error}"
            ) from error
        callbacks = callbacks_of(trainer)
        if not any(isinstance(callback, CompressionBenchmark) for callback in callbacks):
            callbacks.append(CompressionBenchmark())
        callbacks.append(RunSafety())
        return trainer

    def after_instantiate_classes(self) -> None:
        """Name the checkpoint to the module, and check that the run's folder can be written."""
        if isinstance(self.model, FineTuningModule):
            self.model.restored_from = self._of_command("ckpt_path")
        if not self._of_command("trainer").fast_dev_run:
            self._check_folder()

    @rank_zero_only  # the other processes do not know yet which version of the run is theirs
    def _check_folder(self) -> None:
        check_writable(run_folder(self.trainer))

    def after_fit(self) -> None:
        """End the run with the test loop on the best checkpoint; the benchmark reports."""
        if self._of_command("trainer").fast_dev_run:
            return
        missed = shortfalls(self.trainer)
        # Where nothing was trained or saved, the model as it is; where a target was not reached,
        # too: the best checkpoint would be one of the least compressed model.
        best = not missed and any(
            getattr(one, "best_model_path", "") for one in self.trainer.checkpoint_callbacks
        )
        last = self.trainer.test if self._has_test() else self.trainer.validate
        last(self.model, datamodule=self.datamodule, ckpt_path="best" if best else None)
        if not self._has_test():
            self._save_model()
        if missed:
            raise TargetNotReachedError("\n".join(missed))

    def before_fit(self) -> None:
        """Say at the start that there will be no report."""
        if not self._has_test():
            rank_zero_info(
                "data.path: there is no test split, so there will be no report; name a file in "
                "data.splits.test for one."
            )

    def _has_test(self) -> bool:
        return bool(getattr(self.datamodule, "has_test", True))

    def _save_model(self) -> None:
        """What the benchmark does otherwise."""
        model = transformer_in(self.model)
        if model is not None and self.trainer.is_global_zero:
            folder = run_folder(self.trainer) / "model"
            save_compressed(model, folder, DataInfo.of(self.datamodule).tokenizer)
            rank_zero_info(f"There is no test split, so there is no report. Model: {folder}")

    def predict(self, **kwargs: Any) -> None:
        """Write one line per example to ``predictions.jsonl`` in the run's folder."""
        batches: list[Any] = self.trainer.predict(**kwargs) or []
        rank = f"-rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = run_folder(self.trainer) / f"predictions{rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        model = transformer_in(self.model)
        names = [] if model is None else list((model.config.id2label or {}).values())
        with path.open("w", encoding="utf-8") as file:
            for line in lines_of(batches, names, self.datamodule):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        rank_zero_info(f"Predictions: {path}")


def command_line() -> CompressCLI:
    """Parse ``sys.argv`` and run the command in it."""
    return CompressCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        # Every option is plain data, so a checkpoint needs no parser to be read again.
        load_from_checkpoint_support=False,
        seed_everything_default=0,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
    )


def run_trainer() -> None:
    """Run the command on the command line, without the noise.

    Raises:
        InputError: what was given does not work.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().lstrip("💡 \n").startswith(_CHATTER)
    )
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    try:
        sys.argv[1:] = with_resumed_run(sys.argv[1:])
        command_line()
    except (MisconfigurationException, NonFiniteLossError) as error:
        raise InputError(str(error)) from error


def check_checkpoint(path: Path) -> None:
    """See that a file is a whole Lightning checkpoint.

    Raises:
        InputError: it is missing, damaged or something else.
    """
    if not path.is_file():
        raise InputError(f"ckpt_path: there is no file {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise InputError(
            f"ckpt_path: {path} is damaged or no checkpoint (was it cut off while being written or "
            "copied?): use another one from its folder"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise InputError(f"ckpt_path: {path} is not a Lightning checkpoint: it has no state_dict")
