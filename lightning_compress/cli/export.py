"""``export``: write a saved model for another runtime, and see that it says the same there."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lightning_compress.cli.saved_model import (
    calibration_of,
    load_saved,
    model_and_data_parser,
    ready_options,
)
from lightning_compress.errors import InputError
from lightning_compress.export.formats import FormatName
from lightning_compress.quantization.precisions import PrecisionName

_BATCH_SIZE = 16


def run_export(arguments: list[str]) -> None:
    """Parse the arguments of the command, export, compare and say what was found.

    Raises:
        InputError: the model, the data or a choice does not work, or what was written does not say
            what PyTorch says.
    """
    _export(ready_options(_parser, arguments))


def _parser() -> ArgumentParser:
    parser = model_and_data_parser(
        "export",
        "Write a saved model, dense or compressed, for another runtime; run it there on real "
        "examples and refuse it if it does not say what it says in PyTorch.",
    )
    parser.add_argument("--format", type=FormatName, required=True, help="what to write")
    parser.add_argument("--output", type=str, required=True, help="folder to make")
    parser.add_argument(
        "--precision",
        type=PrecisionName | None,
        default=None,
        help="default: that of a quantized model, fp32 of another",
    )
    parser.add_argument("--examples", type=int, default=256, help="test examples to compare on")
    parser.add_argument(
        "--max_batch_size", type=int, default=32, help="of a batch, where a format plans for it"
    )
    parser.add_argument(
        "--nncf",
        action="store_true",
        help="let NNCF quantize, with --format openvino --precision int8-static",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="of tensorrt: write the ONNX and the command that makes an engine of it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older export")
    return parser


def _export(ready: Any) -> None:
    from lightning_compress.data.info import DataInfo
    from lightning_compress.evaluation.compatibility import check_examples
    from lightning_compress.evaluation.examples import examples_of, sampled_batches
    from lightning_compress.export.export import check_export, export_model
    from lightning_compress.export.format import ExportOptions
    from lightning_compress.export.verify import verdict
    from lightning_compress.quantization.precisions import PRECISIONS, own_precision

    if ready.examples < 1:
        raise InputError(f"examples must be at least 1, not {ready.examples}")
    model, data, output = load_saved(ready.model, ready.task), ready.data, Path(ready.output)
    options = ExportOptions(
        precision=ready.precision or own_precision(model) or "fp32",
        nncf=ready.nncf,
        max_batch_size=ready.max_batch_size,
        dry_run=ready.dry_run,
    )
    check_export(model, output, ready.format, options, overwrite=ready.overwrite)
    if PRECISIONS[options.precision].needs_calibration:
        seen = calibration_of(data, model, _BATCH_SIZE)
        options = dataclasses.replace(options, calibration_batches=seen)
    data.setup("test")
    examples = sampled_batches(
        data.test_dataloader(),
        ready.examples,
        batch_size=_BATCH_SIZE,
        pad_token_id=model.config.pad_token_id or 0,
    )
    check_examples("given", model, examples_of(examples))
    sys.stderr.write(f"Exporting for {ready.format} in {options.precision}\n")
    agreement = export_model(
        model,
        output,
        ready.format,
        examples=examples,
        options=options,
        tokenizer=DataInfo.of(data).tokenizer,
        overwrite=ready.overwrite,
    )
    said = verdict(agreement, options.precision)
    sys.stdout.write(f"{said}\n{output}/README.md says how to run it.\n")
