"""What a teacher is run on: every batch or, with a cache, every text once; in its own tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lightning_compress.data.dataloader import ResumableLoader
from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.dataset import TokenBatches, fingerprint_of
from lightning_compress.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from lightning_compress.distillation.options import Annealed
from lightning_compress.distillation.outputs import RequestedOutputs
from lightning_compress.distillation.teacher import (
    LiveTeacher,
    Teacher,
    TopKConfig,
    cache_folder,
    cached_teacher,
)
from lightning_compress.errors import InputError
from lightning_compress.modules.teacher_setup import DENSE
from lightning_compress.progress import progress_bar
from lightning_compress.types import Batch

CacheUse = Literal["auto", "always", "never"]


def maybe_cached(
    teacher: LiveTeacher,
    requested: RequestedOutputs,
    trainer: L.Trainer,
    *,
    use: CacheUse,
    cache_dir: Path,
    top_k: int | None,
    temperature: Annealed | None,
) -> Teacher:
    """The teacher itself, or a teacher whose outputs for training and validation texts are cached.

    Args:
        teacher: on the device of the run.
        requested: outputs that the losses need.
        trainer: of the run that begins.
        use: when to cache, see :class:`~lightning_compress.modules.DistillationModule`.
        cache_dir: folder of all caches.
        top_k: number of a language model's logits to cache; None for classifiers.
        temperature: of the soft targets.

    Raises:
        InputError: ``use`` is ``always`` and caching is impossible, or the cache is not writable.
    """
    loaders = _loaders(trainer)
    reason = _why_not(loaders, requested, top_k, temperature)
    if use == "always" and reason:
        raise InputError(f"model.teacher_cache: {reason}; set it to never")
    if use == "never" or reason or (use == "auto" and requested.hidden):
        return teacher
    texts = [cast(TokenBatches, loader.dataset) for loader in loaders]
    read = texts if teacher.inputs is None else cast(RetokenizedInputs, teacher.inputs).splits
    config = None if top_k is None else TopKConfig(top_k, [cast(float, temperature or 1.0)])
    key = {"data": fingerprint_of(read)}
    folder = cache_folder(teacher, cache_dir, requested=requested, top_k_config=config, key=key)
    batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
    if use == "auto" and batches < len(loaders[0]) and not folder.is_dir():
        return teacher  # the run sees fewer texts than the cache would hold
    ids = np.concatenate([one.sequences.ids for one in texts])
    with _every_batch(loaders, trainer, folder) as every:
        return cached_teacher(teacher, every, ids, folder, requested, config)


@contextmanager
def _every_batch(
    loaders: list[Any], trainer: L.Trainer, folder: Path
) -> Iterator[Callable[[], Iterator[Batch]]]:
    """All batches of some dataloaders on the device of the run, with a progress bar."""
    steps = sum(-(-len(loader.dataset) // loader.order.batch_size) for loader in loaders)
    with progress_bar(steps, shown=trainer.progress_bar_callback is not None) as advance:

        def every() -> Iterator[Batch]:
            rank_zero_info(f"Running the teacher once on every text; outputs go to {folder}.")
            for loader in loaders:
                for batch in loader.sample():
                    yield trainer.strategy.batch_to_device(batch)
                    advance("teacher", 1)

        yield every


def _loaders(trainer: L.Trainer) -> list[Any]:
    """The dataloader for training, and those for validation if there are any."""
    found = trainer.val_dataloaders or []
    return [trainer.train_dataloader, *(found if isinstance(found, list) else [found])]


def _why_not(
    loaders: list[Any], requested: RequestedOutputs, top_k: int | None, temperature: Annealed | None
) -> str | None:
    """Why the outputs cannot be cached; None if they can."""
    if not all(isinstance(loader, ResumableLoader) for loader in loaders):
        return "the batches have no stable example ids: use a data module of this package"
    if not all(loader.dataset.fixed_inputs for loader in loaders):
        return "the masked tokens differ in every epoch, and so do the teacher's outputs"
    if requested.attention:
        return "losses.attention_maps and losses.relations need outputs too large to cache"
    if top_k is not None and isinstance(temperature, tuple | list):
        return "losses.soft_targets.temperature changes during the run"
    return None


class RetokenizedInputs:
    """The training and validation examples tokenized by another tokenizer, found by their ids.

    Args:
        data: the data module of the run.
        tokenizer: folder or Hub name.
    """

    def __init__(self, data: TextDataModule, tokenizer: str) -> None:
        other = data.retokenized(tokenizer)
        other.setup("fit")
        self.splits: list[TokenBatches] = [other.examples("train"), other.examples("validation")]

    def __call__(self, batch: Batch) -> Batch:
        """The same examples in the other tokens, on the same device."""
        ids = batch["example_id"].cpu().numpy()
        split = next(one for one in self.splits if np.isin(ids[0], one.sequences.ids))
        found = split.by_ids(ids)
        return {name: value.to(batch["example_id"].device) for name, value in found.items()}


def retokenized_inputs(name: str, data: Any, *, per_token: bool) -> RetokenizedInputs | None:
    """The batches in the teacher's tokens; None if it has the student's tokenizer.

    Args:
        name: Hub name, folder or checkpoint of the teacher; one without a tokenizer is assumed to
            have been trained with the student's.
        data: the data module of the run; one of another package is assumed to fit both.
        per_token: whether a loss compares single tokens.

    Raises:
        InputError: the tokenizers differ and a loss compares single tokens.
    """
    if not isinstance(data, TextDataModule) or data.tokenizer is None:
        return None
    if name == DENSE or Path(name).is_file():
        return None
    try:
        tokenizer = load_tokenizer(name)
    except InputError:
        return None
    if tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(data.tokenizer):
        return None
    if per_token:
        raise InputError(
            f"model.teacher: {name} has another tokenizer than the student, so its tokens are not "
            "the student's: use only losses.soft_targets and losses.embeddings of a classifier, "
            "which are about whole texts, or a teacher with the student's tokenizer"
        )
    return RetokenizedInputs(data, name)
