"""``export``: write a saved model for another runtime, and compare it with PyTorch."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lightning_compress.cli.saved_model import (
    calibration_batches_of,
    load_saved,
    model_and_data_parser,
    ready_options,
    set_up,
)
from lightning_compress.errors import InputError
from lightning_compress.export.formats import FormatName
from lightning_compress.quantization.precisions import PrecisionName

_BATCH_SIZE = 16


def run_export(arguments: list[str]) -> None:
    """Parse the arguments of the command, export, compare and print the result.

    Raises:
        InputError: the model, the data or an option is invalid, or the outputs differ from
            PyTorch's by more than the tolerance.
    """
    _export(ready_options(_parser, arguments))


def _parser() -> ArgumentParser:
    parser = model_and_data_parser(
        "export",
        "Write a saved model, dense or compressed, for another runtime; run it on real examples "
        "and fail if its outputs differ from PyTorch's.",
    )
    parser.add_argument("--format", type=FormatName, required=True, help="file format to write")
    parser.add_argument("--output", type=str, required=True, help="folder to write")
    parser.add_argument(
        "--precision",
        type=PrecisionName | None,
        default=None,
        help="precision to export; default: a quantized model's own, else fp32",
    )
    parser.add_argument("--examples", type=int, default=256, help="test examples to compare on")
    parser.add_argument(
        "--max_batch_size", type=int, default=32, help="largest batch, for formats that plan memory"
    )
    parser.add_argument(
        "--nncf",
        action="store_true",
        help="quantize with NNCF; --format openvino --precision int8-static only",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="write the ONNX file and the build command, no engine; --format tensorrt only",
    )
    parser.add_argument(
        "--signed",
        action="store_true",
        help="int8 instead of uint8 activations, for ARM CPUs; --format onnx --precision "
        "int8-dynamic or int8-static only",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an older export; other files stay"
    )
    return parser


def _export(ready: Any) -> None:
    from lightning_compress.data.info import DataInfo
    from lightning_compress.evaluation.examples import examples_of, sampled_batches
    from lightning_compress.evaluation.model_under_test import check_examples
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
        signed=ready.signed,
    )
    check_export(model, output, ready.format, options, overwrite=ready.overwrite)
    if PRECISIONS[options.precision].needs_calibration:
        batches = calibration_batches_of(data, model, _BATCH_SIZE)
        options = dataclasses.replace(options, calibration_batches=batches)
    set_up(data, model, "test")
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
    result = verdict(agreement, options.precision)
    sys.stdout.write(f"{result}\n{output}/README.md describes how to run it.\n")
