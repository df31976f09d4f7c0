"""Saving and loading a compressed model: a Hugging Face folder with the manifest beside it.

``config.json`` and ``model.safetensors`` are what transformers writes; ``manifest.json`` lists
the edits and ``masks.safetensors`` holds the masks, eight weights a byte. There is no pickle. Where
layers differ in size or are quantized, ``config.json`` says how and ``modeling_compressed.py`` and
``modeling_quantized.py`` lie beside it, so that transformers loads the folder without this package.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_compress.atomic import whole_folder
from lightning_compress.errors import InputError
from lightning_compress.models import modeling_compressed, modeling_quantized
from lightning_compress.models.layers import compact_shapes, layer_count, set_layers_
from lightning_compress.models.manifest import Edit, manifest_of, set_manifest_
from lightning_compress.models.masks import masks_of, pack_mask, set_masks_, unpack_mask
from lightning_compress.models.modeling_compressed import resize_
from lightning_compress.models.removal import reshaping, resizing, sizes_of
from lightning_compress.models.structure import structure_of
from lightning_compress.quantization.fake_quantized import (
    convert_,
    fake_quantized_specs,
    is_prepared,
    place_fake_quantized_,
)
from lightning_compress.quantization.modules import (
    cast_as_recorded_,
    place_quantized_,
    quantized_specs,
)
from lightning_compress.substitution.edit import finalize_substitution_, switches_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


MANIFEST = "manifest.json"


MASKS = "masks.safetensors"


_CODE = "modeling_compressed"


_DESCRIPTION = (
    "compressed_sizes", "compact_blocks", "stacked_layers", "quantized_modules", "auto_map",
)  # fmt: skip


_FORMAT = 1


def compression_state(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint keeps of a compressed model beside its weights, as plain data.

    The manifest, the number of layers, the sizes of what is in them, and the packed masks.
    """
    return {
        "format": _FORMAT,
        "edits": manifest_of(model),
        "layers": layer_count(model),
        "compact": compact_shapes(model),
        "sizes": sizes_of(model),
        "quantized": quantized_specs(model),
        "rounded": fake_quantized_specs(model),
        "masks": {name: pack_mask(mask) for name, mask in masks_of(model).items()},
    }


def restore_compression_(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a model the shapes, manifest and masks of :func:`compression_state`, in place.

    Where shapes change, the weights are unset: they have to be loaded afterwards.

    Raises:
        InputError: the state was written by a newer version, or belongs to another model.
    """
    _require_format(state)
    # Otherwise a model of another shape is another model.
    if reshaping([*state["edits"], *manifest_of(model)]):
        try:
            if state["layers"] is not None:
                set_layers_(model, state["layers"], state.get("compact", {}))
            resize_(model, state["sizes"])
        except AttributeError as error:
            raise InputError(f"the manifest belongs to another model: {error}") from error
    try:
        place_fake_quantized_(model, state.get("rounded", {}))
        place_quantized_(model, state.get("quantized", {}))
        cast_as_recorded_(model, state["edits"])
    except AttributeError as error:
        raise InputError(f"the manifest belongs to another model: {error}") from error
    _restore_edits_(model, state["edits"], state["masks"])


def _require_format(state: Mapping[str, Any]) -> None:
    if state["format"] != _FORMAT:
        raise InputError(
            f"the manifest has format {state['format']}, this version reads {_FORMAT}: "
            "update lightning_compress"
        )


def _restore_edits_(model: nn.Module, edits: Sequence[Edit], masks: Mapping[str, Tensor]) -> None:
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    missing = sorted(set(masks) - set(shapes))
    if missing:
        raise InputError(f"the masks belong to another model: it has no weight {missing[0]!r}")
    if masks:
        set_masks_(model, {name: unpack_mask(mask, shapes[name]) for name, mask in masks.items()})
    set_manifest_(model, list(edits))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and reports on files that are known to fit."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def save_compressed(
    model: "PreTrainedModel",
    folder: str | Path,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Path:
    """Write a model, dense or compressed, to a folder that :func:`load_compressed` reads.

    The folder appears whole or not at all; an older model in its place is replaced. Of compact
    blocks beside the layers that they replace, the compact blocks alone are saved; layers that
    round in training are saved as the quantized ones that they will be.

    Raises:
        InputError: ``folder`` holds something that is not a saved model.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds files that are not a saved model: choose another folder or empty it"
        )
    if switches_of(model):
        model = copy.deepcopy(model)
        finalize_substitution_(model)
    if is_prepared(model):
        model = copy.deepcopy(model)
        convert_(model)
    with whole_folder(folder) as unfinished:
        _write(model, unfinished, tokenizer)
    return folder


def _write(
    model: "PreTrainedModel", folder: Path, tokenizer: "PreTrainedTokenizerBase | None"
) -> None:
    with quiet_transformers(), _described(model, folder):
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    manifest = {"format": _FORMAT, "edits": manifest_of(model)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    masks = {name: pack_mask(mask) for name, mask in masks_of(model).items()}
    if masks:
        save_file(masks, folder / MASKS)


@contextmanager
def _described(model: "PreTrainedModel", folder: Path) -> Iterator[None]:
    """Where a configuration alone does not give the sizes: name them in it, and add the code."""
    specs = quantized_specs(model)
    if not resizing(manifest_of(model)) and not specs:
        yield
        return
    for code in (modeling_compressed, modeling_quantized):
        shutil.copy(str(code.__file__), folder)
    config = model.config
    config.compressed_sizes = sizes_of(model)
    if specs:
        config.quantized_modules = specs
    shapes = compact_shapes(model)
    if shapes:
        layers = structure_of(model).layers
        config.compact_blocks = {layers[int(index)]: shape for index, shape in shapes.items()}
        config.stacked_layers = len(layers)
    name = type(model).__name__
    config.auto_map = dict.fromkeys(_auto_classes(config, name), f"{_CODE}.{name}")
    try:
        yield
    finally:
        _forget_description_(config)


def _forget_description_(config: "PreTrainedConfig") -> None:
    """It is true of the folder only: edits would make it stale."""
    for field in _DESCRIPTION:
        vars(config).pop(field, None)


def _auto_classes(config: "PreTrainedConfig", name: str) -> list[str]:
    """Those of transformers' classes, such as ``AutoModelForMaskedLM``, that give the class."""
    import transformers

    autos = [auto for auto in dir(transformers) if auto.startswith("AutoModel")]
    mappings = {auto: getattr(transformers, auto)._model_mapping for auto in autos}
    return [
        auto
        for auto, mapping in mappings.items()
        if getattr(mapping.get(type(config), None), "__name__", None) == name
    ]


def edits_in(folder: str | Path) -> list[Edit]:
    """The edits that a saved model has seen; none of a folder without a manifest.

    Raises:
        InputError: the manifest is damaged, or was written by a newer version.
    """
    if not (Path(folder) / MANIFEST).is_file():
        return []
    try:
        edits: list[Edit] = _manifest_in(Path(folder))["edits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} cannot be loaded, its manifest is damaged: {error}") from error
    return edits


def _manifest_in(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    _require_format(state)
    return state


def load_compressed(folder: str | Path, **config: Any) -> "PreTrainedModel":
    """Load what :func:`save_compressed` wrote, in eval mode; any Hugging Face folder loads too.

    Args:
        folder: where the model lies.
        config: fields of its configuration to change, such as ``hidden_dropout_prob``.

    Raises:
        InputError: the folder is missing, unreadable, or of an architecture that transformers
            does not have.
    """
    import transformers

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no saved model: it has no config.json")
    try:
        known = transformers.AutoConfig.from_pretrained(folder)
        name = (known.architectures or ["none"])[0]
        architecture = getattr(transformers, name, None)
        if architecture is None:
            raise InputError(f"{folder}/config.json names an unknown architecture: {name}")
        if hasattr(known, "compressed_sizes"):
            architecture = getattr(modeling_compressed, name)
        with quiet_transformers():
            model: PreTrainedModel = architecture.from_pretrained(folder, **config)
        _forget_description_(model.config)
        if (folder / MANIFEST).is_file():
            state = _manifest_in(folder)
            masks = load_file(folder / MASKS) if (folder / MASKS).is_file() else {}
            _restore_edits_(model, state["edits"], masks)
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise InputError(f"{folder} cannot be loaded, a file in it is damaged: {error}") from error
    return model
