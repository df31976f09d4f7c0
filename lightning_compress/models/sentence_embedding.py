"""From the states of an encoder to the embedding of a text, as its configuration states it.

The field ``sentence_embedding`` of the configuration holds what sentence-transformers keeps in
files of its own (Reimers, Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese
BERT-Networks", 2019, arXiv:1908.10084): a folder with these files gives the field, and the field
gives them back.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.errors import InputError

Pooling = Literal["mean", "cls"]

EMBEDDING = "sentence_embedding"
"""Field of a configuration: ``pooling``, ``normalize`` and the contents of ``files``."""

_MODULES, _POOLING = "modules.json", "1_Pooling/config.json"
_KEPT = ("config_sentence_transformers.json", "sentence_bert_config.json")
_MODES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


def mean_over_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """[B, H] mean of the states [B, S, H] over the tokens of the mask [B, S]."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def sentence_embedding(states: Tensor, mask: Tensor, options: Mapping[str, Any]) -> Tensor:
    """The embeddings [B, H] of texts.

    Args:
        states: [B, S, H], output of the last layer.
        mask: [B, S], 1 at tokens, 0 at padding.
        options: ``pooling`` and ``normalize`` (to length 1).
    """
    found = mean_over_tokens(states, mask) if options["pooling"] == "mean" else states[:, 0]
    return functional.normalize(found, dim=-1) if options["normalize"] else found


def stated_embedding(model: nn.Module) -> dict[str, Any] | None:
    """How a model's embeddings are computed; None if it gives none."""
    found: dict[str, Any] | None = getattr(getattr(model, "config", None), EMBEDDING, None)
    return found


def state_embedding_(model: nn.Module) -> None:
    """Note in a model's configuration how its embeddings are computed, unless it says so.

    The files for sentence-transformers of the folder that it was loaded from state it, if there
    are any, else it is the normalised mean. The parameters of a pooler, which embeddings have no
    use for, are not trained.

    Args:
        model: an encoder without a head.

    Raises:
        InputError: the files ask for other modules.
    """
    config: Any = model.config
    if stated_embedding(model) is None:
        found = embedding_in(config.name_or_path) if config.name_or_path else None
        config.sentence_embedding = found or {"pooling": "mean", "normalize": True, "files": {}}
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)


def state_pooling_(model: nn.Module, pooling: Pooling) -> None:
    """Note in a model's configuration another pooling than it states.

    Raises:
        InputError: the pooling is unknown, or the model gives no embeddings.
    """
    if pooling not in get_args(Pooling):
        raise InputError(
            f"model.pooling is {pooling!r}: it must be one of {', '.join(get_args(Pooling))}"
        )
    stated = stated_embedding(model)
    if stated is None:
        raise InputError(
            f"model.pooling is {pooling}, and {type(model).__name__} gives no embeddings: leave it "
            "out, or set model.task: sentence-similarity"
        )
    stated["pooling"] = pooling


def has_embedding_files(source: str) -> bool:
    """Whether a folder or Hub model has files for sentence-transformers."""
    return _json(source, _MODULES) is not None


def embedding_in(source: str) -> dict[str, Any] | None:
    """What the files for sentence-transformers of a folder or Hub model state; None without any.

    Raises:
        InputError: they are damaged, or ask for other modules than pooling over all tokens or the
            first, and normalization.
    """
    modules = _json(source, _MODULES)
    if modules is None:
        return None
    try:
        kinds = [str(one["type"]).rpartition(".")[2] for one in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise InputError(
                f"model.pretrained: {source} is a sentence-transformers model of "
                f"{', '.join(kinds)}: supported are Transformer, Pooling and Normalize"
            )
        pooling = _json(source, f"{modules[1]['path']}/config.json") or {}
        modes = {name for name, on in pooling.items() if name.startswith("pooling_mode_") and on}
        # Later versions name the mode in the place of switches.
        named = pooling.get("pooling_mode")
        found = [name for name, mode in _MODES.items() if modes == {mode} or named == name]
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"model.pretrained: {_MODULES} or {_POOLING} of {source} is damaged: {error}"
        ) from error
    if not found:
        raise InputError(
            f"model.pretrained: {source} pools by {', '.join(sorted(modes)) or named}: supported "
            "are the mean over the tokens and the first token (cls)"
        )
    files = {name: content for name in _KEPT if (content := _json(source, name)) is not None}
    return {"pooling": found[0], "normalize": "Normalize" in kinds, "files": files}


def write_embedding_files(model: nn.Module, folder: Path) -> None:
    """Write the files with which sentence-transformers loads a model's folder.

    Args:
        model: one that states no embeddings has none.
        folder: of the saved model.
    """
    stated = stated_embedding(model)
    for name, content in {} if stated is None else _files(model, stated):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _files(model: nn.Module, stated: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    config: Any = model.config
    kinds = ["Transformer", "Pooling", *(["Normalize"] if stated["normalize"] else [])]
    yield (
        _MODULES,
        [
            {
                "idx": place,
                "name": str(place),
                "path": f"{place}_{kind}" if place else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for place, kind in enumerate(kinds)
        ],
    )
    modes = {mode: name == stated["pooling"] for name, mode in _MODES.items()}
    yield _POOLING, {"word_embedding_dimension": config.hidden_size, **modes}
    # A configuration may be a stranger's: no other name is written.
    yield from ((name, stated["files"][name]) for name in _KEPT if name in stated["files"])


def _json(source: str, name: str) -> Any:
    """The content of a file of a folder or Hub model; None if there is none."""
    from transformers.utils.hub import cached_file

    try:
        path = (
            Path(source) / name
            if Path(source).is_dir()
            else cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        )
        return (
            None if path is None or not Path(path).is_file() else json.loads(Path(path).read_text())
        )
    except OSError:
        return None  # that the model cannot be found is said when it is loaded
    except ValueError as error:
        raise InputError(f"model.pretrained: {name} of {source} is damaged: {error}") from error


def embeddings_of(model: nn.Module, inputs: Mapping[str, Tensor], states: Tensor) -> Tensor | None:
    """The embeddings [B, H] of the texts of a batch; None if the model states none.

    Args:
        model: a Hugging Face model.
        inputs: of its forward; without an ``attention_mask`` there is no padding.
        states: [B, S, H], what it gives for them.
    """
    stated = stated_embedding(model)
    if stated is None:
        return None
    mask = inputs.get("attention_mask")
    if mask is None:
        mask = torch.ones(states.shape[:2], device=states.device)
    return sentence_embedding(states, mask, stated)
