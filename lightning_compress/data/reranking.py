"""Pairs of a query and a document, with the relevance of the document."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lightning_compress.data.dataloader import BatchRequest
from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.dataset import Sequences, Targets
from lightning_compress.data.options import RowOptions
from lightning_compress.data.queries import Queries, queries_in, relevance_in, require_ranking
from lightning_compress.data.sequences import StoredTexts
from lightning_compress.data.splits import SPLITS, SplitName, first_id, row_of, splits_of
from lightning_compress.data.token_cache import Encoding
from lightning_compress.errors import InputError, require_number
from lightning_compress.types import Batch, KeywordsOf


class RerankingDataModule(TextDataModule):
    """Batches for reranking by a cross-encoder, which reads a query with one document.

    A row is a query, a document and its relevance. ``labels`` [B, 2] float32 are the number of the
    query, which is all that the metrics group by, and the relevance in [0, 1]. Rows of a query may
    stand anywhere in the file, and come in any batch. Where validation or test rows are split off,
    queries are divided, so that all documents of a query are in one split.

    Rows of the test split are looked at before training, too.

    Args:
        query: the column with the query.
        document: the column with the document.
        label: the column with the relevance, 0 or 1 or numbers between, or grades.
        query_id: the column that tells the query of a row; None: rows with the same text in
            ``query`` are of one query.
        highest_relevance: the highest grade, by which the relevance is divided.
        options: those of every data module, see ``TextDataModule``. ``max_length`` counts query,
            document and special tokens; of a longer pair the longer text is cut.

    Raises:
        InputError: an option is out of its range.
    """

    tasks = ("reranking",)
    num_labels: int | None = 1

    def __init__(
        self,
        *,
        query: str = "query",
        document: str = "document",
        label: str = "label",
        query_id: str | None = None,
        highest_relevance: float = 1.0,
        **options: KeywordsOf[RowOptions],
    ) -> None:
        if query == document:
            raise InputError(
                f"data.query and data.document are both {query!r}: name two different columns"
            )
        super().__init__(text=[query, document], **options)
        self.hparams.pop("text")  # follows from the others
        require_number("data.highest_relevance", highest_relevance, least=1e-6)
        self.label = label
        self.query_column = query if query_id is None else query_id
        self.highest_relevance = highest_relevance
        self._queries: dict[SplitName, Queries] = {}
        self._relevance: dict[SplitName, NDArray[np.float32]] = {}
        self._mean_relevance: float | None = None

    @property
    def label_frequencies(self) -> list[float] | None:
        """Mean relevance of the training rows: where it is 0 or 1, the fraction of the relevant."""
        return None if self._mean_relevance is None else [self._mean_relevance]

    def query_of(self, example_id: int) -> Any:
        """What the query of an example is known by: its text, or its ``query_id``.

        Args:
            example_id: of a batch of a split that ``setup`` has opened.
        """
        queries = self._queries[SPLITS[example_id // first_id("validation")]]
        return queries.names[queries.numbers[row_of(example_id)]]

    def _encoding(self) -> Encoding:
        return Encoding(max_length=self.max_length)

    def _sequences(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Sequences:
        ids = first_id(origin) + rows
        return StoredTexts(self._tokens(origin), rows, ids, max_length=self.max_length)

    def _targets(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Targets:
        numbers, relevance = self._queries[origin].numbers[rows], self._relevance[origin][rows]
        if split == "train":
            self._mean_relevance = float(relevance.mean())
        elif told := require_ranking(numbers, relevance, f"{split} rows of {self.task_name}"):
            rank_zero_info(f"data.label: {told}")
        return _Relevance(np.stack([numbers, relevance], axis=1).astype(np.float32))

    def _learn(self, stage: str) -> None:
        """Look at the queries and the relevance of the stage's rows and of the test split."""
        later: list[SplitName] = ["test"] if stage == "fit" and self.has_test else []
        for split in (*splits_of(stage), *later):
            origin = self._origin(split)
            if origin not in self._queries:
                queries = self._read(origin, self.query_column)
                where = self.sources[origin].name
                self._queries[origin] = queries_in(queries, self.query_column, where)
            if split != "predict" and origin not in self._relevance:
                self._relevance[origin] = self._checked(origin)

    def _checked(self, origin: SplitName) -> NDArray[np.float32]:
        where = self.sources[origin].name
        labels = self._read(origin, self.label)
        relevance = relevance_in(labels, self.highest_relevance, where)
        if origin != "train":
            require_ranking(self._queries[origin].numbers, relevance, where)
        elif relevance.min() == relevance.max():
            raise InputError(
                f"{where}: every data.label is {relevance[0] * self.highest_relevance:g}, so there "
                "is nothing to learn or to measure: give rows of relevant and of other documents"
            )
        return relevance

    def _read(self, origin: SplitName, column: str) -> Any:
        table = self.sources[origin].read([column], limit=self.limits.get(origin))
        if table.num_rows == 0:
            raise InputError(
                f"{self.sources[origin].name} has no rows: data.path needs a file with rows in it"
            )
        return table.column(0)

    def _groups(self) -> NDArray[np.int64]:
        return self._queries["train"].numbers

    def _columns_of(self, split: SplitName) -> dict[str, str]:
        query, document = self.columns
        labelled = {} if split == "predict" else {self.label: "label"}
        by_id = {} if self.query_column == query else {self.query_column: "query_id"}
        return {query: "query", document: "document", **by_id, **labelled}


class _Relevance(Targets):
    """Adds the query and the relevance of the rows to a batch."""

    def __init__(self, labels: NDArray[np.float32]) -> None:
        self.labels = labels

    def __call__(self, batch: Batch, request: BatchRequest) -> None:
        batch["labels"] = torch.from_numpy(self.labels[request.indices])
