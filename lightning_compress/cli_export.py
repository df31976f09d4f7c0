"""``export``: write a saved model for another runtime, and see that it says the same there."""

import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from lightning_compress.errors import InputError
from lightning_compress.evaluation.task import Task
from lightning_compress.export.formats import FormatName
from lightning_compress.quantization.observing import CALIBRATION_EXAMPLES
from lightning_compress.quantization.precisions import Precision

_BATCH_SIZE = 16


def run_export(arguments: list[str]) -> None:
    """Parse the arguments of the command, export, compare and say what was found.

    Raises:
        InputError: the model, the data or a choice does not work, or what was written does not say
            what PyTorch says.
    """
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*")
    options = _parser().parse_args(arguments)
    data_options = options.data.init_args
    if "tokenizer" in data_options and data_options.tokenizer is None:
        data_options.tokenizer = options.model
    _export(_parser().instantiate(options))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="lightning-compress export",
        description="Write a saved model, dense or compressed, for another runtime; run it there "
        "on real examples and refuse it if it does not say what it says in PyTorch.",
    )
    parser.add_argument("model", type=str, help="folder (compressed or Hugging Face) or Hub name")
    parser.add_argument("--format", type=FormatName, required=True, help="what to write")
    parser.add_argument("--output", type=str, required=True, help="folder to make")
    parser.add_argument(
        "--precision",
        type=Precision | None,
        default=None,
        help="default: that of a quantized model, fp32 of another",
    )
    parser.add_argument(
        "--task", type=Task, default="sequence-classification", help="what the model does"
    )
    parser.add_argument("--examples", type=int, default=256, help="test examples to compare on")
    parser.add_argument(
        "--most_examples", type=int, default=32, help="of a batch, where a format plans for it"
    )
    parser.add_argument(
        "--nncf",
        action="store_true",
        help="let NNCF quantize, with --format openvino --precision int8-static",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="of tensorrt: write the ONNX and the command that makes an engine of it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older export")
    parser.add_subclass_arguments(
        LightningDataModule,
        "data",
        default={"class_path": "lightning_compress.data.TextClassificationDataModule"},
        help="whose examples to compare on, and to find the steps of int8-static on",
    )
    return parser


def _export(ready: Any) -> None:
    from lightning_compress.evaluation.examples import examples_of, sampled_batches
    from lightning_compress.evaluation.fitting import check_examples
    from lightning_compress.export.exporting import check_export, export_model, verdict
    from lightning_compress.export.formats import Choices
    from lightning_compress.modules.building import build_model
    from lightning_compress.quantization.precisions import own_precision

    if ready.examples < 1:
        raise InputError(f"examples must be at least 1, not {ready.examples}")
    model = build_model(
        pretrained=ready.model,
        config=None,
        task=ready.task,
        labels={},
        vocabulary={},
        new_head=False,
    ).eval()
    precision = ready.precision or own_precision(model) or "fp32"
    output, data = Path(ready.output), ready.data
    pad = model.config.pad_token_id or 0

    def some(loader: Any, count: int) -> list[dict[str, Any]]:
        batches = sampled_batches(loader, count, batch_size=_BATCH_SIZE, pad_token_id=pad)
        check_examples("given", model, examples_of(batches))
        return batches

    seen = []
    if precision == "int8-static":
        data.setup("fit")
        seen = some(data.train_dataloader(), CALIBRATION_EXAMPLES)
    choices = Choices(
        precision=precision,
        calibration=seen,
        nncf=ready.nncf,
        most_examples=ready.most_examples,
        dry_run=ready.dry_run,
    )
    check_export(model, output, ready.format, choices, overwrite=ready.overwrite)
    data.setup("test")
    sys.stderr.write(f"Exporting for {ready.format} in {precision}\n")
    agreement = export_model(
        model,
        output,
        ready.format,
        examples=some(data.test_dataloader(), ready.examples),
        choices=choices,
        tokenizer=getattr(data, "tokenizer", None),
        overwrite=ready.overwrite,
    )
    sys.stdout.write(f"{verdict(agreement, precision)}\n{output}/README.md says how to run it.\n")
