"""Types and conventions that all packages share: batches, labels, padding, options, charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "IGNORE_INDEX",
    "MAIN_INPUTS",
    "PAD_MULTIPLE",
    "Batch",
    "Chart",
    "DeclaresCharts",
    "KeywordsOf",
    "ProblemType",
    "main_input",
    "padded_length",
]

if TYPE_CHECKING:
    from typing import Unpack as KeywordsOf
else:

    class KeywordsOf:
        """Annotation of ``**options`` that are those of the parent class, by a ``TypedDict``.

        Type checkers read it as ``typing.Unpack``. At run time it is ``Any``, so that jsonargparse
        follows ``**options`` to the parent, which has the defaults and the documentation, too.
        """

        def __class_getitem__(cls, options: type) -> Any:
            return Any


Batch = dict[str, Tensor]
"""A batch of the dataloaders: ``input_ids`` [B, S], ``attention_mask`` [B, S], ``labels``, ...

Of images: ``pixel_values`` [B, C, H, W] and ``labels``.
"""


MAIN_INPUTS = ("input_ids", "pixel_values")
"""Inputs of which a batch has one: it has a row for each example."""


def main_input(batch: Mapping[str, Any]) -> Any:
    """The token ids [B, S] of a batch of texts, or the pixels [B, C, H, W] of images.

    Raises:
        KeyError: the batch has neither.
    """
    name = next((name for name in MAIN_INPUTS if name in batch), MAIN_INPUTS[0])
    return batch[name]


ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""Kinds of labels of a classifier, as ``config.problem_type`` of transformers names them."""


IGNORE_INDEX = -100
"""Label of a token or an example that loss and metrics leave out."""


PAD_MULTIPLE = 8
"""Lengths of padded batches are rounded up to a multiple of this."""


@overload
def padded_length(length: int, max_length: int) -> int: ...


@overload
def padded_length(length: NDArray[np.int64], max_length: int) -> NDArray[np.int64]: ...


def padded_length(length: Any, max_length: int) -> Any:
    """Round a length, or lengths [N], up to a multiple of 8, but never beyond ``max_length``.

    Kernels are faster on such shapes, and there are fewer shapes to compile for.
    """
    rounded = -(-length // PAD_MULTIPLE) * PAD_MULTIPLE
    return min(rounded, max_length) if isinstance(length, int) else np.minimum(rounded, max_length)


@dataclass(frozen=True)
class Chart:
    """A chart on TensorBoard's page *Compression*.

    Args:
        title: heading of the chart.
        tags: regular expressions; the chart shows all logged values with a matching name.
        with_metric: whether the values lie in [0, 1] and are to be shown in one chart with a
            validation metric of that range.
    """

    title: str
    tags: tuple[str, ...]
    with_metric: bool = False


@runtime_checkable
class DeclaresCharts(Protocol):
    """A callback or LightningModule with charts."""

    charts: Sequence[Chart]
