"""Saving and loading a compressed model.

A saved model is a Hugging Face folder: ``config.json``, ``model.safetensors`` and, where there are
masks, ``masks.safetensors`` with eight weights a byte; no pickle. The field ``compression`` of
``config.json`` holds the compression state of a checkpoint, all but the masks. Where transformers
cannot build the model from it, ``modeling_compressed.py`` and what that needs lie beside it, so
that the folder loads without this package, and the weights in ``model.compressed.safetensors``,
which transformers' own classes do not find.
"""

import copy
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lightning_compress.atomic import updated_folder
from lightning_compress.compression_state import FORMAT, compression_state, require_format
from lightning_compress.errors import InputError
from lightning_compress.models import modeling_compressed, modeling_kernels, modeling_quantized
from lightning_compress.models.layers import LAYERS
from lightning_compress.models.manifest import (
    COMPRESSION,
    EDITS,
    MASK_EDIT,
    Edit,
    beyond_config,
    edits_of_part,
    manifest_of,
)
from lightning_compress.models.masks import MASKS
from lightning_compress.models.sentence_embedding import write_embedding_files
from lightning_compress.quantization.fake_quantized import convert_, is_prepared
from lightning_compress.quantization.modules import QUANTIZED
from lightning_compress.substitution.edit import finalize_substitution_, switches_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_CONFIG_FILE, _MASKS_FILE = "config.json", "masks.safetensors"
_DAMAGES = (OSError, ValueError, KeyError, TypeError)
_CODE = (modeling_compressed, modeling_quantized, modeling_kernels)
_STALE = re.compile(
    r"masks\.safetensors|modeling_(compressed|quantized|kernels)\.py|"
    r"(model|pytorch_model)(\.compressed)?(-\d{5}-of-\d{5})?\.(safetensors|bin)"
    r"(\.index(\.compressed)?\.json)?"
)
"""Files that a saved model may have and would be taken for parts of the one that replaces it."""


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

    An older model in the folder is replaced; all other files stay. After an error there is the
    older model. Of replacement switches the compact blocks alone are saved; fake-quantized layers
    are saved quantized. ``model.save_pretrained`` does the same to a compressed model.

    Args:
        model: any Hugging Face model.
        folder: created, with its parents.
        tokenizer: saved beside the model.

    Raises:
        InputError: ``folder`` is a file, only a part of the model was compressed, or its class is
            not one of transformers', which alone can be loaded with other sizes.
    """
    folder = Path(folder)
    _save(model, folder, tokenizer, {})
    return folder


def save_edited(
    model: "PreTrainedModel",
    save_directory: str | Path,
    is_main_process: bool = True,
    **options: Any,
) -> bool:
    """Save a model as :func:`save_compressed` if it, or a model inside it, has edits.

    Args:
        model: any Hugging Face model.
        save_directory: created, with its parents.
        is_main_process: whether this process writes.
        options: of transformers' ``save_pretrained``.

    Returns:
        False if it was not saved: it has no edits, or :func:`save_compressed` is saving it.

    Raises:
        InputError: as for :func:`save_compressed`, or an option has no meaning for such a model.
    """
    edited = any(manifest_of(module) for module in model.modules())
    if not edited or COMPRESSION in vars(model.config):
        return False
    for name in ("state_dict", "push_to_hub", "distributed_checkpoint"):
        if options.get(name):
            raise InputError(
                f"save_pretrained of a compressed {type(model).__name__} has no {name}: leave it "
                "out, and use what it wrote"
            )
    if is_main_process:
        _save(model, Path(save_directory), None, options)
    return True


def _save(
    model: "PreTrainedModel",
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase | None",
    options: dict[str, Any],
) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another name for the folder")
    _require_whole(model)
    if switches_of(model):
        model = copy.deepcopy(model)
        finalize_substitution_(model)
    if is_prepared(model):
        model = copy.deepcopy(model)
        convert_(model)
    with updated_folder(folder, marker=_CONFIG_FILE, stale=_STALE) as unfinished:
        _write(model, unfinished, tokenizer, options)


def _require_whole(model: "PreTrainedModel") -> None:
    from transformers import PreTrainedModel

    expected = edits_of_part(manifest_of(model))
    for name, part in model.named_modules():
        if name and isinstance(part, PreTrainedModel) and manifest_of(part) != expected:
            raise InputError(
                f"{name} of {type(model).__name__} was compressed on its own: compress the whole "
                "model, or save that part"
            )


def _needs_code(state: dict[str, Any]) -> bool:
    """Whether a configuration cannot express a model."""
    lacks_first = False in state.get(LAYERS.key, {}).get("first", {}).values()
    return lacks_first or beyond_config(state[EDITS.key]) or bool(state.get(QUANTIZED.key))


def _write(
    model: "PreTrainedModel",
    folder: Path,
    tokenizer: "PreTrainedTokenizerBase | None",
    options: dict[str, Any],
) -> None:
    state = compression_state(model)
    masks = state.pop(MASKS.key)
    if _needs_code(state):
        import transformers

        if not isinstance(model, getattr(transformers, type(model).__name__, type(None))):
            raise InputError(
                f"{type(model).__name__} is no class of transformers and could not be loaded: "
                "save its state_dict and compression_state, see docs/custom-trainer.md"
            )
        # In the names of its modules: older ones are translated for transformers' classes only.
        options |= {"variant": modeling_compressed.VARIANT, "save_original_format": False}
        for code in _CODE:
            shutil.copy(str(code.__file__), folder)
    with quiet_transformers(), _described(model, state):
        model.save_pretrained(folder, **options)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    write_embedding_files(model, folder)
    if masks:
        save_file(masks, folder / _MASKS_FILE)


@contextmanager
def _described(model: "PreTrainedModel", state: dict[str, Any]) -> Iterator[None]:
    """Put the state into the configuration while it is saved."""
    config = model.config
    # The shape of a dense model is that of its configuration.
    config.compression = state if state[EDITS.key] else {"format": FORMAT, EDITS.key: []}
    if _needs_code(state):
        config.auto_map = _auto_map(model)
    try:
        yield
    finally:
        _forget_description_(config)


def _forget_description_(config: "PreTrainedConfig") -> None:
    """Remove fields that are true of the folder only: the next edit would make them stale."""
    for field in (COMPRESSION, "auto_map"):
        vars(config).pop(field, None)


def _auto_map(model: "PreTrainedModel") -> dict[str, str]:
    """The class in ``modeling_compressed.py`` for each of transformers' ``AutoModel...``."""
    from transformers.models.auto import modeling_auto

    found = {}
    for auto, kind in vars(modeling_auto).items():
        if auto.startswith("AutoModel"):
            classes = kind._model_mapping.get(type(model.config), ())
            names = [one.__name__ for one in (classes if isinstance(classes, tuple) else [classes])]
            if names:
                own = type(model).__name__
                found[auto] = f"modeling_compressed.{own if own in names else names[0]}"
    return found


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
        require_format(state)
        edits: list[Edit] = state[EDITS.key]
    except _DAMAGES as error:
        raise InputError(f"{folder}/config.json is damaged: {error}") from error
    return edits


def load_compressed(
    folder: str | Path, *, new_head: bool = False, **config: Any
) -> "PreTrainedModel":
    """Load what :func:`save_compressed` wrote, in eval mode; any Hugging Face folder loads too.

    Args:
        folder: of the model.
        new_head: put an untrained head in the place of one of another size.
        config: fields of its configuration to change, such as ``hidden_dropout_prob``.

    Raises:
        InputError: the folder is missing, damaged, or of an architecture that transformers does
            not have; or its tensors are not those of the model.
    """
    import transformers

    folder = Path(folder)
    if not (folder / _CONFIG_FILE).is_file():
        raise InputError(f"{folder} is no saved model: it has no config.json")
    try:
        known = transformers.AutoConfig.from_pretrained(folder)
        state = getattr(known, COMPRESSION, None)
        name = (known.architectures or ["none"])[0]
        architecture = getattr(transformers, name, None)
        if architecture is None:
            raise InputError(f"{folder}/config.json names an unknown architecture: {name}")
        if state is not None:
            require_format(state)
            if _needs_code(state):
                architecture = getattr(modeling_compressed, name)
        with quiet_transformers():
            model: PreTrainedModel
            model, found = architecture.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **config
            )
        if new_head:
            body = f"{model.base_model_prefix}."
            found["mismatched_keys"] = [k for k in found["mismatched_keys"] if body in k[0]]
        _require_complete(folder, name, found, exactly=state is not None)
        _forget_description_(model.config)
        if state is not None:
            _restore_description_(model, folder, state[EDITS.key])
    except InputError:
        raise
    except (*_DAMAGES, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be loaded, a file in it is damaged: {error}") from error
    return model


def _require_complete(folder: Path, name: str, found: dict[str, Any], *, exactly: bool) -> None:
    """Require that the file has the tensors of the model; others' may have more of them."""
    problems = {
        "are missing": sorted(found["missing_keys"]),
        "have other shapes": sorted(key for key, *_ in found["mismatched_keys"]),
        "are too many": sorted(found["unexpected_keys"]) if exactly else [],
    }
    for problem, keys in problems.items():
        if keys:
            raise InputError(
                f"{folder} cannot be loaded, {len(keys)} tensors of {name} {problem} "
                f"({', '.join(keys[:3])}): its files do not belong together, write it again"
            )


def _restore_description_(model: "PreTrainedModel", folder: Path, edits: list[Edit]) -> None:
    masked = any(edit["weights"] for edit in edits if edit["edit"] == MASK_EDIT)
    MASKS.restore_(model, load_file(folder / _MASKS_FILE) if masked else {})
    EDITS.restore_(model, edits)
