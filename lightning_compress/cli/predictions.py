"""The lines of ``predictions.jsonl``: numbers of a prediction under the names of the labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_compress.data.splits import row_of


def described(prediction: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """One prediction for a reader, as plain data.

    Args:
        prediction: of one example, by the names of ``predict_step``.
        names: of the labels in the order of the model's outputs.

    Returns:
        The prediction with ``row``, the row of its file counted from 0; the name ``label`` of a
        class or the names ``labels`` of several; and probabilities by name.
    """
    line = dict(prediction)
    if "example_id" in line:
        line = {"row": row_of(line["example_id"]), **line}
    if "class" in line:
        line["label"] = names[line["class"]]
    if "probabilities" in line:
        by_name = dict(zip(names, line["probabilities"], strict=True))
        if "class" not in line:
            line["labels"] = [name for name, value in by_name.items() if value > 0.5]
        line["probabilities"] = by_name
    return line
