"""Types and constants shared by data, tasks and modules, after Hugging Face's conventions."""

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

__all__ = ["IGNORE_INDEX", "Batch", "KeywordsOf", "ProblemType"]

Batch = dict[str, Tensor]
"""A batch of the dataloaders: ``input_ids`` [B, S], ``attention_mask`` [B, S], ``labels``, ..."""

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""Kinds of labels of a classifier, as ``config.problem_type`` of transformers names them."""

IGNORE_INDEX = -100
"""Label of a token or an example that loss and metrics leave out."""

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
