"""Types and constants shared by data, tasks and modules, after Hugging Face's conventions."""

from typing import Literal

from torch import Tensor

Batch = dict[str, Tensor]
"""A batch of the dataloaders: ``input_ids`` [B, S], ``attention_mask`` [B, S], ``labels``, ..."""

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""Kinds of labels of a classifier, as ``config.problem_type`` of transformers names them."""

IGNORE_INDEX = -100
"""Label of a token or an example that loss and metrics leave out."""
