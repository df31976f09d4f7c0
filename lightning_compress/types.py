"""What data, modules and evaluation agree on about labels; Hugging Face's own conventions."""

from typing import Literal

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


IGNORED = -100
"""The label of a token that nobody is asked to predict."""
