"""Labels that cannot be those of a problem: their form, and how many there are."""

from collections.abc import Sequence

from lightning_compress.data.label_column import LabelColumn
from lightning_compress.errors import InputError
from lightning_compress.types import ProblemType

_MOST_LABELS = 10_000
_MOST_RARE_LABELS = 1000


def require_form(column: LabelColumn, problem: ProblemType, where: str) -> None:
    """Refuse labels whose form is that of another problem.

    Args:
        column: the labels.
        problem: what they are for.
        where: what error messages call the source.

    Raises:
        InputError: they are lists, numbers or names where the problem has others.
    """
    lists, several = column.lengths is not None, problem == "multi_label_classification"
    if several and not lists:
        raise InputError(
            f"{where}: data.label holds no lists of labels, and the problem is {problem}: write "
            "lists of labels, or vectors of zeros and ones, or leave out model.problem_type"
        )
    if lists and not several:
        raise InputError(
            f"{where}: data.label holds lists, and the problem is {problem}: use "
            "model.problem_type: multi_label_classification, or one label a row"
        )
    if problem == "regression" and column.is_text:
        raise InputError(
            f"{where}: not every data.label is a number, and the problem is {problem}: the first "
            f"is {column.values[0].as_py()!r}"
        )
    if problem != "regression" and column.has_fractions:
        fraction = next(value for value in column.values.to_pylist() if value % 1)
        raise InputError(
            f"{where}: data.label holds {fraction}, and the problem is {problem}: labels are whole "
            "numbers or names; model.problem_type: regression predicts numbers, one a row"
        )


def refuse_single_numbers(
    column: LabelColumn, where: str, class_names: Sequence[str] | None
) -> None:
    """Refuse lists that may be a label or a vector.

    Args:
        column: the labels of a multi-label problem.
        where: what error messages call the source.
        class_names: names of the classes 0, 1, ..., where the source declares them.

    Raises:
        InputError: each list is a single 0 or 1.
    """
    if column.width == 1 and class_names is None:
        raise InputError(
            f"{where}: data.label holds lists of a single 0 or 1, which may be a label or whether "
            "there is one: write the number without a list"
        )


def refuse_too_many(column: LabelColumn, count: int, where: str) -> None:
    """Refuse numbers, ids or texts that are taken for classes: nothing could be learned of them.

    Args:
        column: the labels.
        count: how many different ones there are.
        where: what error messages call the source.

    Raises:
        InputError: there are more than 10,000, or more than 1,000 of which most stand in one row.
    """
    rows = len(column.values)
    if count <= _MOST_RARE_LABELS or (count <= _MOST_LABELS and rows >= 2 * count):
        return
    kind = "texts or ids" if column.is_text else "numbers or ids"
    remedy = "" if column.is_text else "set model.problem_type: regression to predict a number, "
    raise InputError(
        f"{where}: data.label holds {count} different labels in {rows} rows, which are rather "
        f"{kind} than classes: {remedy}name another column in data.label, or set "
        f"model.num_labels: {count} if they are classes"
    )
