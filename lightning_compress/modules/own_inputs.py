"""A teacher that was trained with another tokenizer reads the same texts in its own tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lightning_compress.data.collation import TokenBatches
from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.tokenization import load_tokenizer, tokenizer_fingerprint
from lightning_compress.distillation.teachers import Batch
from lightning_compress.errors import InputError
from lightning_compress.modules.teaching import DENSE


class OwnInputs:
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


def own_inputs(name: str, data: Any, *, by_token: bool) -> Callable[[Batch], Batch] | None:
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
    return OwnInputs(data, name)
