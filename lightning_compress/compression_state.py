"""The compression state of a model: what rebuilds it from a dense one before weights are loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models.layers import LAYERS
from lightning_compress.models.manifest import COMPRESSION, EDITS, change_shape, manifest_of
from lightning_compress.models.masks import MASKS
from lightning_compress.models.sizes import SIZES
from lightning_compress.models.structure import transformer_in
from lightning_compress.quantization.cast import DTYPE
from lightning_compress.quantization.fake_quantized import FAKE_QUANTIZED
from lightning_compress.quantization.modules import QUANTIZED

PARTS = (LAYERS, SIZES, FAKE_QUANTIZED, QUANTIZED, DTYPE, MASKS, EDITS)
"""The parts of the state in the order in which they are restored."""

FORMAT = 2


def compression_state(model: nn.Module) -> dict[str, Any]:
    """What rebuilds a compressed model before its weights are loaded, as plain data and tensors."""
    return {"format": FORMAT, **{part.key: part.capture(model) for part in PARTS}}


def restore_compression_(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a model the layers, modules, masks and manifest of a state, in place.

    Where shapes change, the weights are unset: they have to be loaded afterwards.

    Args:
        model: a freshly built dense model, or one compressed already.
        state: from :func:`compression_state`.

    Raises:
        InputError: the state was written by another version, or belongs to another model.
    """
    require_format(state)
    shapes = change_shape([*state["edits"], *manifest_of(model)])
    for part in PARTS:
        if shapes or not part.shape:
            try:
                part.restore_(model, state[part.key])
            except AttributeError as error:
                raise InputError(f"the manifest belongs to another model: {error}") from error


def restore_from_checkpoint_(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Give the model of a LightningModule the shapes of a checkpoint before its weights are loaded.

    For ``on_load_checkpoint`` of a module of one's own, so that ``load_from_checkpoint`` and a
    Trainer without the callbacks load what the callbacks have made.

    Args:
        module: freshly built, dense; or compressed already.
        checkpoint: of Lightning; one without compression changes nothing.

    Raises:
        InputError: as for :func:`restore_compression_`.
    """
    if COMPRESSION in checkpoint:
        restore_compression_(edited_module(module), checkpoint[COMPRESSION])


def edited_module(module: nn.Module) -> nn.Module:
    """The module that carries edits and masks: the Hugging Face model, or the whole module."""
    return transformer_in(module) or module


def require_format(state: Mapping[str, Any]) -> None:
    """Require that this version reads a state.

    Raises:
        InputError: another version wrote it.
    """
    if state["format"] != FORMAT:
        raise InputError(
            f"the compression state has format {state['format']}, this version reads {FORMAT}: "
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


def is_saved_here(folder: str | Path) -> bool:
    """Whether ``save_compressed`` wrote a folder, of a compressed or a dense model."""
    try:
        return f'"{COMPRESSION}"' in (Path(folder) / "config.json").read_text()
    except OSError:
        return False
