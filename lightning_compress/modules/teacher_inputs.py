"""Whether a teacher is target_mask in every epoch or once and for all.

A teacher that was trained with another tokenizer reads the same texts in its own tokens.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lightning_compress.data.dataloader import ResumableLoader
from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.dataset import TokenBatches, fingerprint_of
from lightning_compress.data.tokenization import load_tokenizer, tokenizer_fingerprint
from lightning_compress.distillation.annealing import Annealed
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
    wanted: RequestedOutputs,
    trainer: L.Trainer,
    *,
    use: CacheUse,
    cache_dir: Path,
    top_k: int | None,
    temperature: Annealed | None,
) -> Teacher:
    """The teacher itself, or what it has said of the training and validation texts.

    Args:
        teacher: on the device of the run.
        wanted: what will be target_mask.
        trainer: of the run that begins.
        use: of the cache.
        cache_dir: folder of all caches.
        top_k: of a language model's logits; None for classifiers.
        temperature: of the soft targets.

    Raises:
        InputError: the cache is target_mask for and cannot be used, or not be written.
    """
    loaders = _loaders(trainer)
    reason = _why_not(loaders, wanted, top_k, temperature)
    if use == "always" and reason:
        raise InputError(f"model.teacher_cache: {reason}; set it to never")
    if use == "never" or reason or (use == "auto" and wanted.hidden):
        return teacher
    texts = [cast(TokenBatches, loader.dataset) for loader in loaders]
    read = teacher.inputs.splits if isinstance(teacher.inputs, RetokenizedInputs) else texts
    options: dict[str, Any] = {
        "wanted": wanted,
        "top_k_config": top_k and TopKConfig(top_k, [cast(float, temperature or 1.0)]),
        "key": {"data": fingerprint_of(read)},
    }
    folder = cache_folder(teacher, cache_dir, **options)
    batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
    if use == "auto" and batches < len(loaders[0]) and not folder.is_dir():
        return teacher  # fewer texts are target_mask about than the cache would hold
    steps = sum(-(-len(loader.dataset) // loader.order.batch_size) for loader in loaders)
    with progress_bar(steps, shown=trainer.progress_bar_callback is not None) as advance:

        def every() -> Iterator[Batch]:
            rank_zero_info(f"The teacher reads every text once; what it says is kept in {folder}.")
            for loader in loaders:
                for batch in loader.sample():
                    yield trainer.strategy.batch_to_device(batch)
                    advance("teacher", 1)

        ids = np.concatenate([one.sequences.ids for one in texts])
        return cached_teacher(teacher, every, ids, folder, wanted, options["top_k_config"])


def _loaders(trainer: L.Trainer) -> list[Any]:
    """Of the training, and of the validation if there is one."""
    found = trainer.val_dataloaders or []
    return [trainer.train_dataloader, *(found if isinstance(found, list) else [found])]


def _why_not(
    loaders: list[Any], wanted: RequestedOutputs, top_k: int | None, temperature: Annealed | None
) -> str | None:
    """What stands against keeping the answers."""
    if not all(isinstance(loader, ResumableLoader) for loader in loaders):
        return "the batches have no lasting example ids: use a data module of this package"
    if not all(loader.dataset.fixed_inputs for loader in loaders):
        return "the masked tokens differ in every epoch, and so do the teacher's answers"
    if wanted.attention:
        return "losses.attention_maps and losses.relations look at what is too large to be kept"
    if top_k is not None and isinstance(temperature, tuple | list):
        return "losses.soft_targets.temperature changes during the run"
    return None


class RetokenizedInputs:
    """The examples of a fit in another tokenizer's tokens, found by their ids.

    Args:
        data: the data module that the student learns from.
        tokenizer: a folder or a Hub name.
    """

    def __init__(self, data: TextDataModule, tokenizer: str) -> None:
        other = data.retokenized(tokenizer)
        other.setup("fit")
        self.splits: list[TokenBatches] = [other.examples("train"), other.examples("validation")]

    def __call__(self, batch: Batch) -> Batch:
        """The same examples, on the same device."""
        ids = batch["example_id"].cpu().numpy()
        split = next(one for one in self.splits if np.isin(ids[0], one.sequences.ids))
        found = split.by_ids(ids)
        return {name: value.to(batch["example_id"].device) for name, value in found.items()}


def retokenized_inputs(name: str, data: Any, *, by_token: bool) -> Callable[[Batch], Batch] | None:
    """How a teacher reads a batch; None if it reads the student's tokens.

    Args:
        name: the teacher's Hub name, folder or checkpoint; where there is no tokenizer in it, it
            is taken to have been trained with the student's.
        data: the data module of the run; a foreign one is taken to suit both.
        by_token: the student learns something about single tokens.

    Raises:
        InputError: it has another tokenizer, and tokens would be compared.
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
    if by_token:
        raise InputError(
            f"model.teacher: {name} has another tokenizer than the student, so its tokens are not "
            "the student's: use only losses.soft_targets and losses.embeddings of a classifier, "
            "which are about whole texts, or a teacher with the student's tokenizer"
        )
    return RetokenizedInputs(data, name)
