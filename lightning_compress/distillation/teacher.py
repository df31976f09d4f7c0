"""Who teaches: a model that is asked for every batch, or what it has said of every example."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_compress.distillation.outputs import Outputs, TopK, Wanted, observe
from lightning_compress.distillation.teacher_cache import Chunk, TeacherStore, cached_store
from lightning_compress.errors import InputError
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Teacher = Callable[[Batch, Wanted], Outputs]
"""Gives what the teacher says of a batch, without gradients, on the batch's device."""


@dataclass(frozen=True)
class LiveTeacher:
    """A model that is run on every batch.

    Args:
        model: in eval mode.
        inputs: the batch as this model reads it, where it has a tokenizer of its own.
    """

    model: "PreTrainedModel"
    inputs: Callable[[Batch], Batch] | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, wanted: Wanted) -> Outputs:
        """What the model says of a batch."""
        return observe(self.model, batch if self.inputs is None else self.inputs(batch), wanted)


@dataclass(frozen=True)
class CachedTeacher:
    """What a model has said of examples, which is looked up by their ids."""

    store: TeacherStore

    def __call__(self, batch: Batch, wanted: Wanted) -> Outputs:
        """What the model said of the examples of a batch.

        Raises:
            InputError: a layer is wanted that has not been kept.
        """
        missing = [layer for layer in wanted.hidden if f"hidden_{layer}" not in self.store.fields]
        if missing:
            raise InputError(
                f"losses.hidden_states now needs the teacher's layer {missing[0]}, which is not "
                "kept, for the student has lost layers: set model.teacher_cache to never"
            )
        ids, tokens = batch["example_id"], batch["input_ids"]
        rows = self.store.rows(ids.cpu().numpy(), tokens.shape[1])
        said = {name: torch.from_numpy(row).to(tokens.device) for name, row in rows.items()}
        mask = batch.get("attention_mask")
        return Outputs(
            logits=said["logits"] if "logits" in said else _top_k_of(said),
            mask=torch.ones_like(tokens).bool() if mask is None else mask.bool(),
            hidden={
                int(name.removeprefix("hidden_")): states
                for name, states in said.items()
                if name.startswith("hidden_")
            },
            embedding=said.get("embedding"),
        )


@dataclass(frozen=True)
class Tokenwise:
    """What to keep of a language model's logits.

    Args:
        top_k: how many of the largest, at every token.
        temperatures: at which to keep what all add up to.
    """

    top_k: int
    temperatures: Sequence[float]


def cached_teacher(
    teacher: LiveTeacher,
    batches: Callable[[], Iterable[Batch]],
    ids: NDArray[np.int64],
    folder: Path,
    wanted: Wanted,
    tokenwise: Tokenwise | None,
) -> CachedTeacher:
    """Look up what a teacher says of examples, after a pass over them if it is not known yet.

    Hidden states are kept as float16, everything else as float32.

    Args:
        teacher: is asked.
        batches: of all the examples, each with its ``example_id`` [B]; right-padded.
        ids: [N] of the examples.
        folder: as of :func:`cache_folder`.
        wanted: what to keep beside the logits.
        tokenwise: of a language model.

    Raises:
        InputError: the cache cannot be written.
    """

    def write() -> Iterator[Chunk]:
        for batch in batches():
            outputs = teacher(batch, wanted)
            per_example, per_token = _kept(outputs, tokenwise)
            yield Chunk(
                batch["example_id"].cpu().numpy(),
                {name: value.cpu().numpy() for name, value in per_example.items()},
                {name: value.cpu().numpy() for name, value in per_token.items()},
                outputs.mask.sum(1).cpu().numpy(),
            )

    return CachedTeacher(cached_store(folder, ids, write))


def cache_folder(
    teacher: LiveTeacher,
    cache_dir: Path,
    *,
    wanted: Wanted,
    tokenwise: Tokenwise | None,
    key: Mapping[str, Any],
) -> Path:
    """Where the answers of a teacher are kept; named after all that they depend on.

    Args:
        teacher: its weights and configuration count, not its name.
        cache_dir: folder of all caches.
        wanted: what is kept beside the logits.
        tokenwise: of a language model.
        key: plain data on which else the answers depend: what the teacher reads.
    """
    whole = {
        "layout": 1,
        "teacher": fingerprint(teacher.model),
        "hidden": sorted(wanted.hidden),
        "embedding": wanted.embedding,
        "tokenwise": tokenwise and [tokenwise.top_k, sorted(tokenwise.temperatures)],
        **key,
    }
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return cache_dir / "teacher" / digest[:32]


def fingerprint(model: "PreTrainedModel") -> str:
    """Hash of a model's configuration and weights, not of its name or place."""
    digest = hashlib.sha256(json.dumps(model.config.to_diff_dict(), sort_keys=True).encode())
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def freeze_(model: nn.Module) -> None:
    """Make a teacher of a model: in eval mode, without gradients."""
    model.eval().requires_grad_(False)


def _kept(
    outputs: Outputs, tokenwise: Tokenwise | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is kept of each example, and of each token."""
    per_example: dict[str, Tensor] = {}
    per_token = {f"hidden_{layer}": states.half() for layer, states in outputs.hidden.items()}
    if outputs.embedding is not None:
        per_example["embedding"] = outputs.embedding.float()
    assert isinstance(outputs.logits, Tensor)
    logits = outputs.logits.float()
    if tokenwise is None:
        per_example["logits"] = logits
        return per_example, per_token
    values, indices = logits.topk(min(tokenwise.top_k, logits.shape[-1]))
    per_token |= {"values": values, "indices": indices.int()}
    for temperature in sorted({1.0, *tokenwise.temperatures}):
        per_token[f"logsumexp_{temperature}"] = (logits / temperature).logsumexp(-1)
    return per_example, per_token


def _top_k_of(said: Mapping[str, Tensor]) -> TopK:
    return TopK(
        said["values"],
        said["indices"],
        {
            float(name.removeprefix("logsumexp_")): value
            for name, value in said.items()
            if name.startswith("logsumexp_")
        },
    )
