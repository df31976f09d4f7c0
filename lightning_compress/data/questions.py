"""Questions about contexts with the answers that stand in them: what a row may hold."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_compress.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Answer:
    """A part of a context.

    Args:
        text: the characters.
        start: place of the first of them.
    """

    text: str
    start: int

    @property
    def end(self) -> int:
        """Place behind the last character."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Args:
        text: the question.
        context: what it is about.
        answers: all that count as right; none for a question without an answer, or unknown ones.
    """

    text: str
    context: str
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class QuestionColumns:
    """The names of the columns.

    Args:
        question: the question.
        context: what it is about.
        answers: the answers; None if they are not to be read.
    """

    question: str
    context: str
    answers: str | None

    def present(self, columns: list[str]) -> list[str]:
        """Those to read, of the columns that there are: with ``answer_start``, if there is one."""
        wanted = [self.question, self.context, *([self.answers] if self.answers else [])]
        return wanted + ["answer_start"] * (self.answers is not None and "answer_start" in columns)


def questions_in(
    table: "pa.Table", columns: QuestionColumns, where: str, *, unanswerable: bool
) -> Iterator[Question]:
    """Read the rows of a table.

    ``answers`` is an object with the lists ``text`` and ``answer_start``, a list of objects with
    one of each, or a text, whose place is then in the column ``answer_start``.

    Args:
        table: with the columns.
        columns: their names.
        where: what error messages call the source.
        unanswerable: whether a question may be without an answer.

    Raises:
        InputError: a row lacks a text or an answer, or an answer does not stand at its place.
    """
    if not table.num_rows:
        raise InputError(f"{where} has no rows: data.path needs a file with rows in it")
    for number, row in enumerate(table.to_pylist(), start=1):
        here = f"{where}: row {number}"
        for column in (columns.question, columns.context):
            if not isinstance(row[column], str) or not row[column].strip():
                raise InputError(f"{here} has no text in column {column}: take it out or mend it")
        context = row[columns.context]
        answers: tuple[Answer, ...] = ()
        if columns.answers is not None:
            answers = tuple(_answers(row, columns.answers, here))
            for answer in answers:
                _require_place(answer, context, here)
            if not answers and not unanswerable:
                raise InputError(
                    f"{here} has no answer in column {columns.answers}: set data.unanswerable: "
                    "true if there are questions without one, or take it out"
                )
        yield Question(row[columns.question].strip(), context, answers)


def _answers(row: Mapping[str, Any], column: str, here: str) -> Iterator[Answer]:
    value = row[column]
    try:
        if isinstance(value, str):
            value = {"text": [value], "answer_start": [row["answer_start"]]}
        if isinstance(value, list):
            value = {name: [one[name] for one in value] for name in ("text", "answer_start")}
        pairs = [] if value is None else zip(value["text"], value["answer_start"], strict=True)
        for text, start in pairs:
            if not isinstance(text, str) or not text or start is None:
                raise ValueError(f"{text!r} at {start!r}")
            yield Answer(text, _whole(start))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{here} has {row[column]!r:.80} in column {column} ({error!r:.80}): answers are an "
            "object with the lists text and answer_start, or a text with its place in the column "
            "answer_start"
        ) from error


def _whole(start: Any) -> int:
    if isinstance(start, bool) or (isinstance(start, float) and not start.is_integer()):
        raise ValueError(f"{start} is no whole number")
    return int(start)


def _require_place(answer: Answer, context: str, here: str) -> None:
    if answer.start < 0 or context[answer.start : answer.end] != answer.text:
        found = context.find(answer.text)
        known = "it does not stand there at all" if found < 0 else f"it stands at {found}"
        raise InputError(
            f"{here}: the answer {answer.text!r:.60} is not at character {answer.start} of its "
            f"context, {known}: mend answer_start (characters count from 0) or take the row out"
        )
