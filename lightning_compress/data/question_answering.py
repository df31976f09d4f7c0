"""Questions whose answers are parts of a context."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lightning_compress.data.answer_labels import AnswerLabel
from lightning_compress.data.dataloader import BatchRequest
from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.dataset import Sequences, Targets
from lightning_compress.data.options import RowOptions
from lightning_compress.data.questions import Question, QuestionColumns, questions_in
from lightning_compress.data.splits import SPLITS, SplitName, first_id, row_of, splits_of
from lightning_compress.data.token_cache import Encoding
from lightning_compress.data.windows import QuestionWindows, Window, require_room, windows_of
from lightning_compress.errors import InputError
from lightning_compress.types import Batch, KeywordsOf

if TYPE_CHECKING:
    from collections.abc import Sequence


class QuestionAnsweringDataModule(TextDataModule):
    """Batches for extractive question answering: the first and the last token of the answer.

    Rows are those of SQuAD's JSON files, or have a question, a context and its answers. An example
    is a question with as much of its context as fits into ``max_length``; a longer context gives
    several examples, whose windows overlap. ``labels`` [B, 1, L] are those of
    :class:`~lightning_compress.data.answer_labels.AnswerLabel`. Where an answer is not in the
    window, its position is that of the first token.

    Rows of all splits are looked at before training.

    Args:
        question: the column with the question.
        context: the column with the text that the answer is part of.
        answers: the column with the answers: an object with the lists ``text`` and
            ``answer_start`` (a character, counted from 0), or a text whose place is in the column
            ``answer_start``. The first is learned, and all count as right.
        unanswerable: whether there are questions without an answer, as in SQuAD 2.0.
        overlap: tokens of a context that neighbouring windows share.
        options: those of every data module, see ``TextDataModule``. ``max_length`` counts the
            question and the special tokens, too; 384 is usual.

    Raises:
        InputError: an option is out of its range.
    """

    tasks = ("question-answering",)

    def __init__(
        self,
        *,
        question: str = "question",
        context: str = "context",
        answers: str = "answers",
        unanswerable: bool = False,
        overlap: int = 64,
        **options: KeywordsOf[RowOptions],
    ) -> None:
        super().__init__(text=[question, context], **options)
        if overlap < 0:
            raise InputError(f"data.overlap is {overlap}: it must be at least 0")
        self.answers = answers
        self.unanswerable = unanswerable
        self.overlap = overlap
        self._questions: dict[SplitName, list[Question]] = {}
        self._windows: dict[SplitName, list[Window]] = {}

    def window_of(self, example_id: int) -> tuple[Question, Window]:
        """The question and the window of an example.

        Args:
            example_id: of a batch of a split that ``setup`` has opened.
        """
        origin = SPLITS[example_id // first_id("validation")]
        window = self._windows[origin][row_of(example_id)]
        return self._questions[origin][window.row], window

    def _encoding(self) -> Encoding:
        return Encoding(max_length=self.max_length)

    def _learn(self, stage: str) -> None:
        assert self.tokenizer is not None
        later: list[SplitName] = ["test"] if stage == "fit" and self.has_test else []
        for split in (*splits_of(stage), *later):
            origin = self._origin(split)
            if origin in self._questions:
                continue
            source, labelled = self.sources[origin], split != "predict"
            question, context = self.columns
            columns = QuestionColumns(question, context, self.answers if labelled else None)
            table = source.read(columns.present(source.columns()), limit=self.limits.get(origin))
            found = list(questions_in(table, columns, source.name, unanswerable=self.unanswerable))
            require_room(
                self.tokenizer,
                found,
                source.name,
                max_length=self.max_length,
                overlap=self.overlap,
            )
            self._questions[origin] = found

    def _rows(self, origin: SplitName) -> int:
        """Number of questions of a source, whose windows are made now."""
        assert self.tokenizer is not None
        questions = self._questions[origin]
        if origin not in self._windows:
            self._windows[origin] = list(
                windows_of(
                    self.tokenizer, questions, max_length=self.max_length, overlap=self.overlap
                )
            )
            rank_zero_info(
                f"{len(questions)} questions of {self.sources[origin].name} in "
                f"{len(self._windows[origin])} windows of at most {self.max_length} tokens."
            )
        return len(questions)

    def _chosen(self, origin: SplitName, rows: NDArray[np.int64]) -> QuestionWindows:
        windows = self._windows[origin]
        chosen = np.flatnonzero(np.isin([window.row for window in windows], rows))
        return QuestionWindows(windows, chosen, first_id(origin))

    def _sequences(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Sequences:
        return self._chosen(origin, rows)

    def _targets(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Targets:
        windows = self._chosen(origin, rows).windows
        return _Answers(windows, self._questions[origin], self.unanswerable)

    def _columns_of(self, split: SplitName) -> dict[str, str]:
        question, context = self.columns
        labelled = {} if split == "predict" else {self.answers: "answers"}
        return {question: "question", context: "context", **labelled}


class _Answers(Targets):
    """Adds where the answer is in each window, and what it is judged by."""

    def __init__(
        self,
        windows: "Sequence[Window]",
        questions: "Sequence[Question]",
        unanswerable: bool,
    ) -> None:
        self.windows = windows
        self.questions = questions
        self.unanswerable = unanswerable
        self.length = max(self._label(place).size for place in range(len(windows)))

    def __call__(self, batch: Batch, request: BatchRequest) -> None:
        rows = [self._label(place).encoded(self.length) for place in request.indices]
        batch["labels"] = torch.from_numpy(np.stack(rows)).unsqueeze(1)

    def _label(self, place: int) -> AnswerLabel:
        window = self.windows[place]
        question = self.questions[window.row]
        span = window.span(question.answers[0]) if question.answers else None
        start, end = span or (0, 0)
        return AnswerLabel(
            start=start,
            end=end,
            question=window.row,
            unanswerable=self.unanswerable,
            first=window.first,
            offsets=window.offsets - window.begin,
            text=question.context[window.begin : window.end],
            answers=[answer.text for answer in question.answers],
        )
