"""Whether a model has embeddings for the tokens and positions of the data, and adding them."""

from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info

from lightning_compress.errors import InputError
from lightning_compress.models.forward import known_tokens, most_tokens
from lightning_compress.models.manifest import require_float
from lightning_compress.models.masks import masks_of
from lightning_compress.saving import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resize_embeddings_(model: "PreTrainedModel", tokens: int) -> None:
    """Add embeddings for the tokens that a model does not know, in place.

    They are drawn from the normal distribution with mean and covariance of the known ones (John
    Hewitt, Initializing New Word Embeddings for Pretrained Language Models, 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Args:
        model: any Hugging Face model.
        tokens: size of the tokenizer's vocabulary.

    Raises:
        InputError: the model is quantized, or its embeddings are pruned.
    """
    rows = known_tokens(model)
    if rows is None or tokens <= rows:
        return
    remedy = "resize the embeddings of the dense model that it came from, and compress that one"
    require_float(model, remedy)
    embeddings = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = {name for name, module in model.named_modules() if id(module) in embeddings}
    if any(name.rpartition(".")[0] in names for name in masks_of(model)):
        raise InputError(f"the embeddings of {type(model).__name__} are pruned: {remedy}")
    with quiet_transformers():
        model.resize_token_embeddings(tokens)
    rank_zero_info(
        f"The model knew {rows} tokens and the tokenizer {tokens}: {tokens - rows} embeddings are "
        "new and untrained."
    )


def require_readable(model: "PreTrainedModel", vocab_size: int, max_length: int) -> None:
    """Require that a model has embeddings for the tokens and the positions of the data.

    Args:
        model: any Hugging Face model.
        vocab_size: of the tokenizer.
        max_length: maximum number of tokens of an example.

    Raises:
        InputError: there are too few, which would be an index error in the forward pass.
    """
    rows, positions = known_tokens(model), most_tokens(model)
    if rows is not None and vocab_size > rows:
        raise InputError(
            f"the tokenizer knows {vocab_size} tokens and the model {rows}: set data.tokenizer to "
            "the one the model was trained with, or model.resize_embeddings: true to add untrained "
            "embeddings of the new tokens and train them"
        )
    if positions is not None and max_length > positions:
        raise InputError(
            f"data.max_length is {max_length} and the model reads at most {positions} tokens: "
            "lower it"
        )
