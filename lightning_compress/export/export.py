"""Exporting a model: written, checked against PyTorch, and only then put in its place."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_compress.atomic import whole_folder
from lightning_compress.errors import InputError, first_line
from lightning_compress.export.formats import (
    FORMATS,
    ExportOptions,
    Format,
    FormatName,
    missing_packages,
    source_of,
)
from lightning_compress.export.tracing import Traced, input_names, named_inputs
from lightning_compress.export.verify import (
    Agreement,
    agreement_of,
    require_within_tolerance,
    tolerance,
)
from lightning_compress.quantization.precisions import own_precision
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


FACTS = "export.json"


_README = """# {title}

A {architecture} in {precision}, exported by lightning_compress for {format}.

{verdict}

```{language}
{example}```
"""


def export_model(
    model: "PreTrainedModel",
    folder: str | Path,
    format: FormatName,
    *,
    examples: Sequence[Batch],
    options: ExportOptions | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    overwrite: bool = False,
) -> Agreement:
    """Export a model, dense or compressed, and see that it says what it says in PyTorch.

    The model stays as it is. The folder appears whole or not at all; it holds the exported model,
    its configuration, the tokenizer, ``export.json`` with what was found, and a README.

    Args:
        model: a transformer of a known family.
        folder: where to.
        format: one of ``FORMATS``.
        examples: batches of real examples to compare on: ``input_ids`` [B, S] and what else the
            model takes.
        options: precision and the like; default: the model's own precision.
        tokenizer: to lie beside it.
        overwrite: replace an older export.

    Returns:
        How far it agrees.

    Raises:
        InputError: the folder is taken, a package is missing, the format has no form for the model
            or the precision, or what was written says something else. Nothing is written then.
    """
    options = options or ExportOptions(precision=own_precision(model) or "fp32")
    folder, chosen = Path(folder), FORMATS[format]
    check_export(model, folder, format, options, overwrite=overwrite)
    # XNNPACK finds steps of its own, for quantized models too.
    to_find = options.precision == "int8-static" and (
        own_precision(model) is None or format == "executorch"
    )
    if to_find and not options.calibration:
        raise InputError("int8-static needs training examples to find its steps: set calibration")
    source = source_of(model, chosen, options)
    names = input_names(source)
    with whole_folder(folder) as unfinished:
        try:
            chosen.write(source, unfinished, options)
            program = chosen.open(unfinished, names, options.precision, torch.get_num_threads())
            compared = _bounded(examples, options)
            agreement = agreement_of(program, _reference(source, names), compared)
        except InputError:
            raise
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
            raise InputError(f"{format} has no form for this model: {first_line(error)}") from error
        require_within_tolerance(agreement, options.precision)
        source.config.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        _describe(unfinished, folder.name, source, format, options, agreement)
    return agreement


def check_export(
    model: "PreTrainedModel",
    folder: Path,
    format: FormatName,
    options: ExportOptions,
    *,
    overwrite: bool,
) -> None:
    """See whatever shows before anything is written.

    Raises:
        InputError: as of :func:`export_model`.
    """
    chosen = FORMATS[format]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise InputError(f"output: {folder} exists: choose another folder or add --overwrite")
        if not (folder / FACTS).is_file():
            raise InputError(f"output: {folder} holds something that is not an export: remove it")
    missing = missing_packages(chosen)
    if missing is not None:
        raise InputError(f"{format} needs {missing}")
    if options.precision not in chosen.precisions:
        raise InputError(
            f"{format} has no {options.precision}: choose from {', '.join(chosen.precisions)}"
        )
    own = own_precision(model)
    if own is not None and chosen.source(options) != own:
        raise InputError(
            f"the model is quantized to {own} and cannot be exported in "
            f"{options.precision}: export the model that it came from"
        )
    if options.nncf and (format, options.precision) != ("openvino", "int8-static"):
        raise InputError("nncf quantizes for --format openvino with --precision int8-static only")
    if options.dry_run and format != "tensorrt":
        raise InputError("dry_run is for --format tensorrt: the others are built right here")
    if options.max_batch_size < 1:
        raise InputError(f"max_batch_size must be at least 1, not {options.max_batch_size}")
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise InputError(f"{type(model).__name__} takes no input_ids: it is no text model")


def _bounded(examples: Sequence[Batch], options: ExportOptions) -> list[Batch]:
    """The batches, none of which has more examples than were planned for."""
    return [
        {name: value[start : start + options.max_batch_size] for name, value in batch.items()}
        for batch in examples
        for start in range(0, len(batch["input_ids"]), options.max_batch_size)
    ]


def _reference(model: "PreTrainedModel", names: Sequence[str]) -> Callable[[Batch], Tensor]:
    traced = Traced(model, names)

    @torch.no_grad()
    def reference(batch: Batch) -> Tensor:
        found: Tensor = traced(*named_inputs(names, batch))
        return found

    return reference


def _describe(
    folder: Path,
    title: str,
    model: "PreTrainedModel",
    format: FormatName,
    options: ExportOptions,
    agreement: Agreement,
) -> None:
    """Write ``export.json`` and the README."""
    chosen: Format = FORMATS[format]
    packages = ("lightning-compress", "torch", "transformers", *chosen.modules)
    facts = {
        "format": format,
        "precision": options.precision,
        "inputs": input_names(model),
        "agreement": dataclasses.asdict(agreement),
        "versions": {name: metadata.version(name) for name in packages},
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    example, language = chosen.usage(model, options)
    text = _README.format(
        title=title,
        architecture=type(model).__name__,
        precision=options.precision,
        format=format,
        verdict=verdict(agreement, options.precision),
        language=language,
        example=example,
    )
    (folder / "README.md").write_text(text)


def verdict(agreement: Agreement, precision: str) -> str:
    """How far an exported model agrees with PyTorch, in words."""
    largest, equal = tolerance(precision)
    words = (
        f"On {agreement.examples} examples its logits differ from PyTorch's by at most "
        f"{agreement.largest_difference:.2g} (the largest is {agreement.largest_logit:.3g})"
    )
    if agreement.equal_predictions is not None:
        words += f", and {agreement.equal_predictions:.2%} of the predictions are equal"
    return (
        f"{words}. It would have been refused with a difference of more than {largest:g}, or that "
        f"much of the largest logit, or with less than {equal:.1%} of the predictions equal."
    )
