"""Saving and loading a compressed model, and the compression state of checkpoints.

A saved model is a Hugging Face folder: ``config.json``, ``model.safetensors`` and, where there are
masks, ``masks.safetensors`` with eight weights a byte; no pickle. The field ``compression`` of
``config.json`` holds the compression state that a checkpoint has under the same key, all but the
masks. Where transformers cannot build the model from its configuration,
``modeling_compressed.py``, ``modeling_quantized.py`` and ``modeling_kernels.py`` lie beside it, so
that the folder loads without this package.
"""

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_compress.atomic import whole_folder
from lightning_compress.errors import InputError
from lightning_compress.models import (
    modeling_compressed,
    modeling_kernels,
    modeling_quantized,
)
from lightning_compress.models.layers import LAYERS
from lightning_compress.models.manifest import (
    EDITS,
    MASK_EDIT,
    Edit,
    beyond_config,
    change_shape,
    manifest_of,
)
from lightning_compress.models.masks import MASKS
from lightning_compress.models.removal import SIZES
from lightning_compress.quantization.fake_quantized import FAKE_QUANTIZED, convert_, is_prepared
from lightning_compress.quantization.modules import DTYPE, QUANTIZED
from lightning_compress.substitution.edit import finalize_substitution_, switches_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

COMPRESSION = "compression"
"""Key of the compression state in checkpoints and in ``config.json``."""

PARTS = (LAYERS, SIZES, FAKE_QUANTIZED, QUANTIZED, DTYPE, MASKS, EDITS)
"""The parts of the state in the order in which they are restored."""

_MASKS_FILE = "masks.safetensors"
_FORMAT = 2


def compression_state(model: nn.Module) -> dict[str, Any]:
    """What rebuilds a compressed model before its weights are loaded, as plain data and tensors."""
    return {"format": _FORMAT, **{part.key: part.capture(model) for part in PARTS}}


def restore_compression_(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a model the layers, modules, masks and manifest of a state, in place.

    Where shapes change, the weights are unset: they have to be loaded afterwards.

    Args:
        model: a freshly built dense model, or one compressed already.
        state: from :func:`compression_state`.

    Raises:
        InputError: the state was written by another version, or belongs to another model.
    """
    _require_format(state)
    shapes = change_shape([*state["edits"], *manifest_of(model)])
    for part in PARTS:
        if shapes or not part.shape:
            try:
                part.restore_(model, state[part.key])
            except AttributeError as error:
                raise InputError(f"the manifest belongs to another model: {error}") from error


def _require_format(state: Mapping[str, Any]) -> None:
    if state["format"] != _FORMAT:
        raise InputError(
            f"the compression state has format {state['format']}, this version reads {_FORMAT}: "
            "use the version of lightning_compress that wrote it"
        )


@runtime_checkable
class RestoresCompression(Protocol):
    """A LightningModule that restores the compression state of its checkpoints itself."""

    restores_compression: Literal[True]


def store_compression(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Put the compression state of a model into a checkpoint, unless somebody has done so."""
    if COMPRESSION not in checkpoint:
        checkpoint[COMPRESSION] = compression_state(model)


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

    The folder appears whole or not at all; an older model in its place is replaced. Of replacement
    switches the compact blocks alone are saved; fake-quantized layers are saved quantized.

    Args:
        model: any Hugging Face model.
        folder: created, with its parents.
        tokenizer: saved beside the model.

    Raises:
        InputError: ``folder`` holds files that are not a saved model.
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
    state = compression_state(model)
    masks = state.pop(MASKS.key)
    with quiet_transformers(), _described(model, folder, state):
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    if masks:
        save_file(masks, folder / _MASKS_FILE)


@contextmanager
def _described(model: "PreTrainedModel", folder: Path, state: dict[str, Any]) -> Iterator[None]:
    """Put the state into the configuration while it is saved, and the code beside it if needed."""
    config, name = model.config, type(model).__name__
    # The shape of a dense model is that of its configuration.
    config.compression = state if state[EDITS.key] else {"format": _FORMAT, EDITS.key: []}
    if beyond_config(state[EDITS.key]) or state[QUANTIZED.key]:
        for code in (modeling_compressed, modeling_quantized, modeling_kernels):
            shutil.copy(str(code.__file__), folder)
        classes = _auto_classes(config, name)
        config.auto_map = dict.fromkeys(classes, f"modeling_compressed.{name}")
    try:
        yield
    finally:
        _forget_description_(config)


def _forget_description_(config: "PreTrainedConfig") -> None:
    """Remove fields that are true of the folder only: the next edit would make them stale."""
    for field in (COMPRESSION, "auto_map"):
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


def is_saved_here(folder: str | Path) -> bool:
    """Whether :func:`save_compressed` wrote a folder, of a compressed or a dense model."""
    try:
        return f'"{COMPRESSION}"' in (Path(folder) / "config.json").read_text()
    except OSError:
        return False


def edits_in(folder: str | Path) -> list[Edit]:
    """The manifest of a saved model; empty for a dense one and where there is no folder.

    Raises:
        InputError: the configuration is damaged, or was written by another version.
    """
    import transformers

    if not (Path(folder) / "config.json").is_file():
        return []
    try:
        state = transformers.PreTrainedConfig.get_config_dict(folder)[0].get(COMPRESSION)
        if state is None:
            return []
        _require_format(state)
        edits: list[Edit] = state[EDITS.key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} cannot be loaded, its config.json is damaged: {error}"
        ) from error
    return edits


def load_compressed(folder: str | Path, **config: Any) -> "PreTrainedModel":
    """Load what :func:`save_compressed` wrote, in eval mode; any Hugging Face folder loads too.

    Args:
        folder: of the model.
        config: fields of its configuration to change, such as ``hidden_dropout_prob``.

    Raises:
        InputError: the folder is missing, damaged, or of an architecture that transformers does
            not have.
    """
    import transformers

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no saved model: it has no config.json")
    try:
        known = transformers.AutoConfig.from_pretrained(folder)
        state = getattr(known, COMPRESSION, None)
        name = (known.architectures or ["none"])[0]
        architecture = getattr(transformers, name, None)
        if architecture is None:
            raise InputError(f"{folder}/config.json names an unknown architecture: {name}")
        if state is not None:
            _require_format(state)
            if beyond_config(state[EDITS.key]) or state.get(QUANTIZED.key):
                architecture = getattr(modeling_compressed, name)
        with quiet_transformers():
            model: PreTrainedModel = architecture.from_pretrained(folder, **config)
        _forget_description_(model.config)
        if state is not None:
            masked = any(one["weights"] for one in state[EDITS.key] if one["edit"] == MASK_EDIT)
            MASKS.restore_(model, load_file(folder / _MASKS_FILE) if masked else {})
            EDITS.restore_(model, state[EDITS.key])
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
