"""Export a model: write it, compare it with PyTorch, and only then put it in place."""

import dataclasses
import inspect
import json
import re
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_compress.atomic import updated_folder
from lightning_compress.errors import InputError, first_line
from lightning_compress.export.format import ExportOptions, Format, for_images
from lightning_compress.export.formats import FORMATS, FormatName
from lightning_compress.export.tracing import Traced, input_names, named_inputs
from lightning_compress.export.verify import (
    Agreement,
    agreement_of,
    require_within_tolerance,
    verdict,
)
from lightning_compress.models.forward import logits_in, require_runs
from lightning_compress.models.sentence_embedding import stated_embedding
from lightning_compress.quantization.modules import is_in_full_range
from lightning_compress.quantization.precisions import PRECISIONS, own_precision
from lightning_compress.types import MAIN_INPUTS, Batch, main_input

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


FACTS = "export.json"


_FULL_RANGE = (
    "Weights within ±127 (full_range): on x86 CPUs without VNNI {runtime} adds two products in "
    "16 bits, which can overflow, so that predictions differ there. Quantize with "
    "full_range: false for the same results on every CPU."
)


_README = """# {title}

A {architecture} in {precision}, exported by lightning_compress for {format}.

{verdict}{caveat}

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
    """Export a model, dense or compressed, and compare the export with the model in PyTorch.

    The model is not changed. The folder is written atomically: the exported model, configuration,
    tokenizer, README, and ``export.json`` with the result of the comparison.

    Args:
        model: a transformer of a supported family.
        folder: the folder to write.
        format: one of ``FORMATS``.
        examples: batches of real examples to compare on: ``input_ids`` [B, S] and the model's other
            inputs.
        options: precision and options of the format; default: the model's own precision.
        tokenizer: saved with the model.
        overwrite: replace an older export; other files in its folder stay.

    Returns:
        How closely the exported model's logits and predictions match.

    Raises:
        InputError: the folder is not empty, a package is missing, the format does not support the
            model or the precision, or the outputs differ by more than the precision's tolerance.
            Nothing is written then.
    """
    options = options or ExportOptions(precision=own_precision(model) or "fp32")
    folder, target = Path(folder), FORMATS[format]
    check_export(model, folder, format, options, overwrite=overwrite)
    calibrates = PRECISIONS[options.precision].needs_calibration and (
        own_precision(model) is None or target.recalibrates
    )
    if calibrates and not options.calibration_batches:
        raise InputError(f"{options.precision} needs calibration examples: set calibration_batches")
    _require_logits(model, examples)
    source = target.source(model, options)
    caveat = _caveat(source, target)
    if caveat is not None:
        warnings.warn(caveat, stacklevel=2)
    with updated_folder(folder, marker=FACTS, stale=_files_of(folder)) as unfinished:
        agreement = _written(source, unfinished, target, options, examples)
        require_within_tolerance(agreement, options.precision)
        # As in a saved model: servers look here for the head of the model.
        source.config.architectures = [type(source).__name__]
        source.config.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        _describe(unfinished, folder.name, source, target, options, agreement, caveat)
    return agreement


def _written(
    source: "PreTrainedModel",
    folder: Path,
    target: Format,
    options: ExportOptions,
    examples: Sequence[Batch],
) -> Agreement:
    """Write the model, load what was written, and compare the two."""
    names = input_names(source)
    try:
        target.write(source, folder, options)
        program = target.open(folder, names, options.precision, torch.get_num_threads())
        batches = _split(examples, options.max_batch_size)
        problem = getattr(source.config, "problem_type", None)
        several = problem == "multi_label_classification"
        numbers = problem == "regression" or stated_embedding(source) is not None
        reference = _reference(source, names)
        positions = hasattr(source, "qa_outputs")  # of all heads for question answering
        return agreement_of(
            program,
            reference,
            batches,
            several_labels=several,
            over_positions=positions,
            numbers=numbers,
        )
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
        raise InputError(
            f"{target.name} cannot represent this model: {first_line(error)}"
        ) from error


def check_export(
    model: "PreTrainedModel",
    folder: Path,
    format: FormatName,
    options: ExportOptions,
    *,
    overwrite: bool,
) -> None:
    """Check everything that can be checked before the model is converted.

    Raises:
        InputError: as for :func:`export_model`.
    """
    target = FORMATS[format]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise InputError(f"output: {folder} exists: choose another folder or add --overwrite")
        if not (folder / FACTS).is_file():
            raise InputError(
                f"output: {folder} holds files and no export: name a new folder, or an export to "
                "overwrite"
            )
    missing = target.missing(options)
    if missing is not None:
        raise InputError(f"{format} needs {missing}")
    target.check(options)
    own = own_precision(model)
    if own is not None and target.source_precision(options) != own:
        raise InputError(
            f"the model is quantized to {own} and cannot be exported in "
            f"{options.precision}: export the model that it was quantized from"
        )
    if options.max_batch_size < 1:
        raise InputError(f"max_batch_size must be at least 1, not {options.max_batch_size}")
    if not any(name in inspect.signature(model.forward).parameters for name in MAIN_INPUTS):
        raise InputError(
            f"{type(model).__name__} takes neither input_ids nor pixel_values: it is a model "
            "neither of texts nor of images"
        )


def _files_of(folder: Path) -> re.Pattern[str]:
    """Matches the names of the files of an older export; no other file in its folder is touched."""
    try:
        names = json.loads((folder / FACTS).read_text())["files"]
        return re.compile("|".join(re.escape(str(name)) for name in names))
    except (OSError, ValueError, KeyError, TypeError):
        return re.compile(re.escape(FACTS))


def _require_logits(model: "PreTrainedModel", examples: Sequence[Batch]) -> None:
    if not examples:
        raise InputError("there are no examples to compare on: give some")
    first = {name: value[:1] for name, value in examples[0].items()}
    logits_in(require_runs(model, first), model, first)


def _split(batches: Sequence[Batch], size: int) -> list[Batch]:
    """The examples in batches of at most ``size``."""
    return [
        {name: value[start : start + size] for name, value in batch.items()}
        for batch in batches
        for start in range(0, len(main_input(batch)), size)
    ]


def _reference(model: "PreTrainedModel", names: Sequence[str]) -> Callable[[Batch], Tensor]:
    """The model in PyTorch, as a function of a batch."""
    traced = Traced(model, names)

    @torch.no_grad()
    def reference(batch: Batch) -> Tensor:
        logits: Tensor = traced(*named_inputs(names, batch))
        return logits

    return reference


def _caveat(model: "PreTrainedModel", target: Format) -> str | None:
    """Why the exported model computes something else on other CPUs; None if it does not."""
    if not is_in_full_range(model) or not target.saturates:
        return None
    return _FULL_RANGE.format(runtime=target.runtime)


def _describe(
    folder: Path,
    title: str,
    model: "PreTrainedModel",
    target: Format,
    options: ExportOptions,
    agreement: Agreement,
    caveat: str | None,
) -> None:
    """Write ``export.json`` and the README."""
    packages = ("lightning-compress", "torch", "transformers", *target.packages)
    facts: dict[str, Any] = {
        "format": target.name,
        "precision": options.precision,
        "inputs": input_names(model),
        "agreement": dataclasses.asdict(agreement),
        "caveat": caveat,
        "versions": {name: metadata.version(name) for name in packages},
    }
    example, language = target.usage(model, options)
    if input_names(model) == ["pixel_values"]:
        example = for_images(example)
    text = _README.format(
        title=title,
        architecture=type(model).__name__,
        precision=options.precision,
        format=target.name,
        verdict=verdict(agreement, options.precision),
        caveat="" if caveat is None else f"\n\n{caveat}",
        language=language,
        example=example,
    )
    (folder / "README.md").write_text(text)
    facts["files"] = [FACTS, *(path.name for path in sorted(folder.iterdir()))]
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
