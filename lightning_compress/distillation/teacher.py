"""Teachers: a model that is run on every batch, or its cached outputs."""

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

from lightning_compress.distillation.outputs import (
    Outputs,
    RequestedOutputs,
    TopK,
    run_with_outputs,
)
from lightning_compress.distillation.teacher_cache import Chunk, TeacherStore, open_or_write
from lightning_compress.errors import InputError
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Teacher = Callable[[Batch, RequestedOutputs], Outputs]
"""Gives the teacher's outputs for a batch, without gradients, on the batch's device."""


@dataclass(frozen=True)
class LiveTeacher:
    """A model that is run on every batch.

    Args:
        model: in eval mode.
        inputs: turns a batch into this model's tokens, where its tokenizer is another one.
    """

    model: "PreTrainedModel"
    inputs: Callable[[Batch], Batch] | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, requested: RequestedOutputs) -> Outputs:
        """The model's outputs for a batch."""
        return run_with_outputs(
            self.model, batch if self.inputs is None else self.inputs(batch), requested
        )


@dataclass(frozen=True)
class CachedTeacher:
    """The cached outputs of a model, by example id."""

    store: TeacherStore

    def __call__(self, batch: Batch, requested: RequestedOutputs) -> Outputs:
        """The cached outputs for the examples of a batch.

        Raises:
            InputError: a layer is requested that is not cached.
        """
        missing = [
            layer for layer in requested.hidden if f"hidden_{layer}" not in self.store.fields
        ]
        if missing:
            raise InputError(
                f"losses.hidden_states now needs the teacher's layer {missing[0]}, which is not "
                "cached, because layers of the student were removed: set model.teacher_cache to "
                "never"
            )
        ids, tokens = batch["example_id"], batch["input_ids"]
        rows = self.store.rows(ids.cpu().numpy(), tokens.shape[1])
        fields = {name: torch.from_numpy(row).to(tokens.device) for name, row in rows.items()}
        mask = batch.get("attention_mask")
        return Outputs(
            logits=fields["logits"] if "logits" in fields else _top_k_of(fields),
            mask=torch.ones_like(tokens).bool() if mask is None else mask.bool(),
            hidden={
                int(name.removeprefix("hidden_")): states
                for name, states in fields.items()
                if name.startswith("hidden_")
            },
            embedding=fields.get("embedding"),
        )


@dataclass(frozen=True)
class TopKConfig:
    """What is cached of a language model's logits.

    Args:
        top_k: number of the largest logits at every token.
        temperatures: at which the normalizer over all logits is cached.
    """

    top_k: int
    temperatures: Sequence[float]


def cached_teacher(
    teacher: LiveTeacher,
    batches: Callable[[], Iterable[Batch]],
    ids: NDArray[np.int64],
    folder: Path,
    requested: RequestedOutputs,
    top_k_config: TopKConfig | None,
) -> CachedTeacher:
    """A teacher whose outputs are cached, after one pass over the examples if they are not yet.

    Hidden states are stored as float16, everything else as float32.

    Args:
        teacher: the model to run.
        batches: of all examples, each with its ``example_id`` [B]; right-padded.
        ids: [N] of the examples.
        folder: from :func:`cache_folder`.
        requested: outputs to cache besides the logits.
        top_k_config: for a language model.

    Raises:
        InputError: the cache cannot be written.
    """

    def write() -> Iterator[Chunk]:
        for batch in batches():
            outputs = teacher(batch, requested)
            per_example, per_token = _cached_fields(outputs, top_k_config)
            yield Chunk(
                batch["example_id"].cpu().numpy(),
                {name: value.cpu().numpy() for name, value in per_example.items()},
                {name: value.cpu().numpy() for name, value in per_token.items()},
                outputs.mask.sum(1).cpu().numpy(),
            )

    return CachedTeacher(open_or_write(folder, ids, write))


def cache_folder(
    teacher: LiveTeacher,
    cache_dir: Path,
    *,
    requested: RequestedOutputs,
    top_k_config: TopKConfig | None,
    key: Mapping[str, Any],
) -> Path:
    """The folder of a teacher's cached outputs, named after everything that they depend on.

    Args:
        teacher: its weights and configuration count, not its name.
        cache_dir: folder of all caches.
        requested: outputs that are cached besides the logits.
        top_k_config: for a language model.
        key: plain data that identifies the inputs of the teacher.
    """
    whole = {
        "layout": 2,
        "teacher": fingerprint(teacher.model),
        "hidden": sorted(requested.hidden),
        "embedding": requested.embedding,
        "top_k": top_k_config and [top_k_config.top_k, sorted(top_k_config.temperatures)],
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
    """Put a model in eval mode and disable its gradients."""
    model.eval().requires_grad_(False)


def _cached_fields(
    outputs: Outputs, top_k_config: TopKConfig | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The fields that are cached per example, and those per token."""
    per_example: dict[str, Tensor] = {}
    per_token = {f"hidden_{layer}": states.half() for layer, states in outputs.hidden.items()}
    if outputs.embedding is not None:
        per_example["embedding"] = outputs.embedding.float()
    assert isinstance(outputs.logits, Tensor)
    logits = outputs.logits.float()
    if top_k_config is None:
        (per_token if logits.dim() == 3 else per_example)["logits"] = logits
        return per_example, per_token
    values, indices = logits.topk(min(top_k_config.top_k, logits.shape[-1]))
    per_token |= {"values": values, "indices": indices.int()}
    for temperature in sorted({1.0, *top_k_config.temperatures}):
        per_token[f"logsumexp_{temperature}"] = (logits / temperature).logsumexp(-1)
    return per_example, per_token


def _top_k_of(fields: Mapping[str, Tensor]) -> TopK:
    return TopK(
        fields["values"],
        fields["indices"],
        {
            float(name.removeprefix("logsumexp_")): value
            for name, value in fields.items()
            if name.startswith("logsumexp_")
        },
    )
