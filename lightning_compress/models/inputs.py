"""What of a batch a model takes."""

import inspect
from collections.abc import Mapping

from torch import Tensor, nn


def model_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that the model's ``forward`` names, without the labels.

    A batch also carries ids, and a tokenizer may write token types that its model does not know.
    """
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in batch.items() if name in known and name != "labels"}
