"""Types that all packages share: batches, kinds of labels, options passed on, declared charts."""

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

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


from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["IGNORE_INDEX", "Batch", "KeywordsOf", "ProblemType"]


Batch = dict[str, Tensor]
"""A batch of the dataloaders: ``input_ids`` [B, S], ``attention_mask`` [B, S], ``labels``, ..."""


ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""Kinds of labels of a classifier, as ``config.problem_type`` of transformers names them."""


IGNORE_INDEX = -100
"""Label of a token or an example that loss and metrics leave out."""


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
