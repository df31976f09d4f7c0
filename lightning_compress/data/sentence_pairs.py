"""Pairs of texts whose embeddings are compared: with a score, or that belong together."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_compress.data.dataloader import BatchRequest
from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.dataset import Sequences, Targets
from lightning_compress.data.labels import LabelScheme
from lightning_compress.data.options import RowOptions
from lightning_compress.data.sequences import PairedTexts, StoredTexts
from lightning_compress.data.splits import SplitName, first_id, row_of, splits_of
from lightning_compress.data.token_cache import Encoding, TokenStore, tokenized
from lightning_compress.errors import InputError
from lightning_compress.types import Batch, KeywordsOf

_MOST_ROWS = 2**23  # float32 counts their texts exactly
_SCORES = LabelScheme("regression", 1, None)


class SentencePairDataModule(TextDataModule):
    """Batches for embeddings of texts that are compared by their cosine.

    Each text is an example of its own; a batch of ``batch_size`` pairs holds twice as many texts,
    and both texts of every pair. ``labels`` [B, 2] float32 are the number of the text in its split
    (2 i and 2 i + 1 are pair i) and the score of the pair in [0, 1], or NaN without scores.

    Args:
        first: the column with the first text.
        second: the column with the second text; None for predictions of single texts.
        score: the column with the score of each pair; None for pairs that belong together, such as
            questions with their answers, where the other texts of a batch are the negatives.
        score_range: the lowest and the highest score, which become 0 and 1.
        options: those of every data module, see ``TextDataModule``.

    Raises:
        InputError: an option is out of its range.
    """

    tasks = ("sentence-similarity",)

    def __init__(
        self,
        *,
        first: str = "sentence1",
        second: str | None = "sentence2",
        score: str | None = "score",
        score_range: Sequence[float] = (0.0, 1.0),
        **options: KeywordsOf[RowOptions],
    ) -> None:
        super().__init__(text=[first] if second is None else [first, second], **options)
        if len(score_range) != 2 or not score_range[0] < score_range[1]:
            raise InputError(
                f"data.score_range is {list(score_range)}: give the lowest and the highest score, "
                "such as [0, 5]"
            )
        self.score = score
        self.score_range = tuple(score_range)
        self.problem_type = "single_label_classification" if score is None else "regression"
        self._scores: dict[SplitName, NDArray[np.float32]] = {}
        self._seconds: dict[SplitName, TokenStore] = {}

    def _encoding(self) -> Encoding:
        return Encoding(max_length=self.max_length)

    def _check_sources(self, stage: str) -> None:
        if len(self.columns) < 2 and stage != "predict":
            raise InputError(
                "data.second: there is one column of texts, and pairs are what is learned and "
                "measured: name the other; single texts are for predict"
            )
        super()._check_sources(stage)

    def _learn(self, stage: str) -> None:
        """Read the scores, those of the test split before training, too."""
        later: list[SplitName] = ["test"] if stage == "fit" and self.has_test else []
        for split in (*splits_of(stage), *later):
            origin = self._origin(split)
            if self.score is None or split == "predict" or origin in self._scores:
                continue
            source = self.sources[origin]
            table = source.read([self.score], limit=self.limits.get(origin))
            try:
                scores = _SCORES.encode(table.column(self.score), source.name)
            except InputError as error:  # what labels are checked for holds for scores
                raise InputError(str(error).replace("data.label", "data.score")) from None
            self._scores[origin] = self._scaled(scores, source.name)

    def _scaled(self, scores: NDArray[np.float32], where: str) -> NDArray[np.float32]:
        low, high = self.score_range
        outside = np.flatnonzero(~((scores >= low) & (scores <= high)))
        if len(outside):
            raise InputError(
                f"{where}: row {outside[0] + 1} of data.score is {scores[outside[0]]:g}, and "
                f"data.score_range is [{low:g}, {high:g}]: set it to the lowest and the highest "
                "score, such as [0, 5]"
            )
        return ((scores - low) / (high - low)).astype(np.float32)

    def _tokens(self, origin: SplitName) -> TokenStore:
        """Token ids of the first texts."""
        return self._column(self._stores, origin, self.columns[0])

    def _column(
        self, stores: dict[SplitName, TokenStore], origin: SplitName, column: str
    ) -> TokenStore:
        assert self.tokenizer is not None
        if origin not in stores:
            stores[origin] = tokenized(
                self.sources[origin],
                [column],
                self.tokenizer,
                self._encoding(),
                limit=self.limits.get(origin),
                cache_dir=self.cache_dir,
            )
        return stores[origin]

    def _sequences(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Sequences:
        if len(rows) > _MOST_ROWS:
            raise InputError(
                f"data.path: {len(rows)} pairs in the {split} split, at most {_MOST_ROWS} can be "
                f"numbered: read fewer with data.limits.{split}"
            )
        ids = first_id(origin) + 2 * rows
        first = StoredTexts(self._tokens(origin), rows, ids, max_length=self.max_length)
        if len(self.columns) < 2:
            return first
        store = self._column(self._seconds, origin, self.columns[1])
        return PairedTexts(first, StoredTexts(store, rows, ids + 1, max_length=self.max_length))

    def _targets(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Targets:
        scores = np.full(len(rows), np.nan) if self.score is None else self._scores[origin][rows]
        return _Pairs(2 * rows, scores)

    def _columns_of(self, split: SplitName) -> dict[str, str]:
        options = dict(zip(self.columns, ("first", "second"), strict=False))
        labelled = self.score is not None and split not in ("predict", "unlabelled")
        return options | ({str(self.score): "score"} if labelled else {})


class _Pairs(Targets):
    """Adds the number of each text and the score of its pair."""

    def __init__(self, numbers: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        both = np.stack([numbers, numbers + 1], 1).ravel()
        self.labels = np.stack([both, np.repeat(scores, 2)], 1).astype(np.float32)

    def __call__(self, batch: Batch, request: BatchRequest) -> None:
        batch["labels"] = torch.from_numpy(self.labels[request.indices])


def pair_of(example_id: int) -> tuple[int, int]:
    """The row of its file, counted from 0, and the column, 0 or 1, of the text of an example."""
    return divmod(row_of(example_id), 2)
