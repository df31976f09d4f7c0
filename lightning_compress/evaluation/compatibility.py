"""Check that examples fit a model; otherwise it would fail with an index error."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.evaluation.examples import Example
from lightning_compress.models.forward import most_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_examples(name: str, model: "PreTrainedModel", examples: Sequence[Example]) -> None:
    """Check the examples that a model is to be measured on.

    Args:
        name: the model's name in error messages.
        model: any Hugging Face model.
        examples: the whole split.

    Raises:
        InputError: a token id, a length or a label exceeds the model's.
    """
    from lightning_compress.tasks import task_of  # imports torchmetrics, which is slow

    embeddings = model.get_input_embeddings()
    token = max(int(example.tokens["input_ids"].max()) for example in examples)
    if isinstance(embeddings, nn.Embedding) and token >= embeddings.num_embeddings:
        raise InputError(
            f"the test split holds token {token} and the {name} model has "
            f"{embeddings.num_embeddings}: set data.tokenizer to the one that the model was "
            "trained with"
        )
    longest, limit = max(len(example) for example in examples), most_tokens(model.config)
    if limit is not None and longest > limit:
        raise InputError(
            f"the test split holds {longest} tokens in one example and the {name} model reads at "
            f"most {limit}: lower data.max_length"
        )
    labels = [example.labels for example in examples if example.labels is not None]
    task = task_of(model)
    if labels and task.distribution == "categorical" and not task.over_vocabulary:
        largest, known = max(int(label.max()) for label in labels), model.config.num_labels
        if known is not None and largest >= known:
            raise InputError(
                f"the test split holds label {largest}, counted from 0, and the {name} model knows "
                f"{known} labels: take data with the model's labels, or another model"
            )
