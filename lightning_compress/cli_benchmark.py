"""``benchmark``: measure a saved model, ours or any Hugging Face one, without training."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from lightning_compress.evaluation.settings import Settings
from lightning_compress.evaluation.task import Task
from lightning_compress.quantization.observing import CALIBRATION_EXAMPLES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_benchmark(arguments: list[str]) -> None:
    """Parse the arguments of the command, measure, print and write the report.

    Raises:
        InputError: a model, the data or a choice does not work.
    """
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*")
    options = _parser().parse_args(arguments)
    data_options = options.data.init_args
    if "tokenizer" in data_options and data_options.tokenizer is None:
        data_options.tokenizer = options.model
    ready = _parser().instantiate(options)
    _measure(ready.model, ready.baseline, ready.task, ready.data, ready.measure, Path(ready.output))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="lightning-compress benchmark",
        description="Measure a saved model on the test split of some data: quality, size, memory, "
        "latency and throughput, in every runtime, precision and device there is.",
    )
    parser.add_argument("model", type=str, help="folder (compressed or Hugging Face) or Hub name")
    parser.add_argument(
        "--baseline", type=str | None, default=None, help="the dense model to compare with"
    )
    parser.add_argument(
        "--task", type=Task, default="sequence-classification", help="what the models do"
    )
    parser.add_argument("--output", type=str, default="logs/benchmark", help="folder of the report")
    parser.add_subclass_arguments(
        LightningDataModule,
        "data",
        default={"class_path": "lightning_compress.data.TextClassificationDataModule"},
    )
    parser.add_class_arguments(Settings, "measure")
    return parser


def _measure(
    model: str, baseline: str | None, task: Task, data: Any, settings: Settings, output: Path
) -> None:
    from lightning_compress.evaluation.benchmark import benchmark
    from lightning_compress.evaluation.examples import Batch, examples_of, sampled_batches
    from lightning_compress.evaluation.rendering import show_report
    from lightning_compress.evaluation.report import Label, write_report
    from lightning_compress.models import manifest_of

    measured = _load(model, task)
    own: Label = "compressed" if baseline is not None or manifest_of(measured) else "dense"
    models: dict[Label, PreTrainedModel] = {own: measured}
    if baseline is not None:
        models = {"dense": _load(baseline, task), **models}
    calibration: list[Batch] = []
    if "int8-static" in (settings.precisions or ()):
        data.setup("fit")
        calibration = sampled_batches(
            data.train_dataloader(),
            CALIBRATION_EXAMPLES,
            batch_size=settings.batch_size,
            pad_token_id=measured.config.pad_token_id or 0,
        )
    data.setup("test")
    report = benchmark(
        models,
        examples_of(data.test_dataloader()),
        settings,
        run_name=Path(model).name,
        task_name=data.task_name,
        calibration=calibration,
        on_update=lambda report: write_report(report, output),
        progress=True,
    )
    show_report(report, output)


def _load(name: str, task: Task) -> "PreTrainedModel":
    from lightning_compress.modules.building import build_model

    model = build_model(
        pretrained=name, config=None, task=task, labels={}, vocabulary={}, new_head=False
    )
    model.eval()
    return model
