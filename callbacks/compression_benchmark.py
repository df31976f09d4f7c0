"""When to measure: once, after the test loop."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_compress.data.info import DataInfo
from lightning_compress.errors import InputError
from lightning_compress.evaluation.benchmark import benchmark
from lightning_compress.evaluation.examples import Example
from lightning_compress.evaluation.report.rendering import show_report, write_report
from lightning_compress.evaluation.report.report import Report, Variant
from lightning_compress.evaluation.settings import BenchmarkOptions, BenchmarkSettings
from lightning_compress.models import manifest_of, transformer_in
from lightning_compress.quantization.activation_stats import CALIBRATION_EXAMPLES
from lightning_compress.saving import load_compressed, save_compressed
from lightning_compress.tasks import task_of
from lightning_compress.types import Batch

from .calibration_batches import calibration_for, check_calibration, require_predictions
from .figures import run_figures
from .model_edit import shortfalls
from .run import dense_models, is_dev_run, run_folder
from .split_examples import examples_of_all, split_batches
from .tensorboard import log_charts, log_final

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CompressionBenchmark(L.Callback):
    """Compare the model with the dense one that it came from, on the whole test split.

    Runs after the test loop, keeps the tested model in ``model/`` of the run's folder, writes
    ``report.json`` and ``report.md`` beside it, prints the main figures and logs them to
    TensorBoard. The dense model is the one that the editing callbacks keep in the run's
    ``dense/``; where there was no edit the model is measured alone. Works on any LightningModule
    around a Hugging Face model, whose test batches are dictionaries with ``input_ids``. Under
    several processes the first one measures.

    Args:
        baseline: folder of another model to compare with.
        settings: what to measure, and for how long; the fields of
            :class:`~lightning_compress.evaluation.settings.BenchmarkSettings`.

    Raises:
        InputError: a setting is out of range, or the machine has no such device.
    """

    def __init__(
        self, *, baseline: str | None = None, **settings: Unpack[BenchmarkOptions]
    ) -> None:
        self.baseline = baseline
        self.settings = BenchmarkSettings(**settings)
        self._started: datetime | None = None
        self._seen: Sequence[Batch] = ()
        self._training: Literal["begun", "resumed"] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """See before anything is trained that the baseline is there."""
        if stage == "fit" or self._started is None:
            self._started, self._training = datetime.now().astimezone(), None
        if self.baseline is not None and not (Path(self.baseline) / "config.json").is_file():
            raise InputError(
                f"baseline: {self.baseline} is no saved model, it has no config.json: give the "
                "folder of one"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lay out the page that puts the techniques over the validation metric."""
        self._training = "begun" if trainer.ckpt_path is None else "resumed"
        model = transformer_in(pl_module)
        if model is not None:
            require_predictions(
                model,
                "CompressionBenchmark",
                "leave it out: measure_latency and measure_footprint take any model",
            )
            task = task_of(model)
            metric = f"val_{task.primary_metric}"
            if self.settings.needs_calibration:
                check_calibration(trainer, model)
            log_charts(trainer, pl_module, metric, metric_is_fraction=task.higher_is_better)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember some training examples if a precision needs them: the test loop has none."""
        model = transformer_in(pl_module)
        if model is not None and self.settings.needs_calibration:
            self._seen = calibration_for(trainer, model, CALIBRATION_EXAMPLES).batches

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure and report."""
        if is_dev_run(trainer):
            return
        model = transformer_in(pl_module)
        if model is None:
            rank_zero_warn(
                f"CompressionBenchmark measures nothing: {type(pl_module).__name__} holds no "
                "Hugging Face model"
            )
            return
        batches = split_batches(trainer.test_dataloaders, trainer.num_test_batches)
        examples, folder = examples_of_all(trainer, batches, "test"), run_folder(trainer)
        if trainer.is_global_zero:
            # A run that has not compressed its model leaves none that passes for compressed.
            if manifest_of(model) or not shortfalls(trainer):
                save_compressed(model, folder / "model", DataInfo.of_trainer(trainer).tokenizer)
            # Lightning's test loop is in inference mode, which new parameters would remember.
            with torch.inference_mode(False):
                report = self._measure(trainer, model, examples, folder)
            show_report(report, folder)
            log_final(trainer, pl_module, report)
        trainer.strategy.barrier("CompressionBenchmark")

    def _measure(
        self,
        trainer: L.Trainer,
        model: "PreTrainedModel",
        examples: Sequence[Example],
        folder: Path,
    ) -> Report:
        return benchmark(
            self._models(model, folder),
            examples,
            self.settings,
            run_name="/".join(folder.absolute().parts[-2:]),
            task_name=DataInfo.of_trainer(trainer).task_name or type(model).__name__,
            started=self._started,
            notes=shortfalls(trainer),
            calibration_batches=self._seen,
            on_update=lambda report: write_report(report, folder, run_figures(folder)),
            progress=trainer.progress_bar_callback is not None,
        )

    def _models(self, model: "PreTrainedModel", folder: Path) -> "dict[Variant, PreTrainedModel]":
        """The models to measure, by their part in the comparison."""
        if self.baseline is not None:
            return {"dense": load_compressed(self.baseline), "compressed": model}
        if not manifest_of(model):
            return {"dense": model}
        dense = folder / "dense"
        if not self._belongs(dense, model):
            rank_zero_info(
                "There is no dense model to compare with: name the folder of one as baseline."
            )
            return {"compressed": model}
        return {"dense": load_compressed(dense), "compressed": model}

    def _belongs(self, dense: Path, model: "PreTrainedModel") -> bool:
        """Whether the dense model in the run's folder is the one that this model came from."""
        if not dense.is_dir():
            return False
        if dense_models.is_saved(model, dense) or self._training == "resumed":
            return True
        if self._training == "begun":  # without an edit, so it is from an earlier run
            return False
        rank_zero_info(f"Comparing with {dense}, from an earlier run; another one: baseline.")
        return True
