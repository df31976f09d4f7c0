"""Lists of words with a tag for each word."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lightning_compress.data.dataloader import BatchRequest
from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.dataset import Sequences, Targets
from lightning_compress.data.entity_tags import completed
from lightning_compress.data.labels import (
    KnownLabels,
    LabelScheme,
    label_scheme,
    scheme_of_model,
)
from lightning_compress.data.options import RowOptions
from lightning_compress.data.sequences import StoredWords
from lightning_compress.data.splits import SPLITS, SplitName, first_id, row_of, splits_of
from lightning_compress.data.tag_lists import TagLists, tag_lists
from lightning_compress.data.token_cache import Encoding
from lightning_compress.data.tokenizer import special_tokens_around
from lightning_compress.errors import InputError
from lightning_compress.types import IGNORE_INDEX, Batch, KeywordsOf

if TYPE_CHECKING:
    import pyarrow as pa


class TokenClassificationDataModule(TextDataModule):
    """Batches for the classification of words: named entities, parts of speech.

    A row is a list of words and a list of as many tags: lists in jsonl or parquet files and in
    datasets of the Hub, sentences in CoNLL files (``.conll``, ``.bio``). The words are tokenized as
    running text. ``labels`` [B, S] have a word's tag at its first token and -100 at all others.
    Words beyond ``max_length`` are left out, and a line at the start tells how many they are.

    The tags of a trained model are those that it knows (``known_labels`` of the module); otherwise
    they are the classes that a dataset declares, or those of the training rows, to which the other
    letters of a type (``I-LOC`` where there is ``B-LOC``) are added. The tags of the
    test split are looked at before training, too, so that one that is not known is found in time.

    After ``setup``: ``tokenizer``, ``num_labels``, ``label_names``, and for training
    ``label_frequencies``.

    Args:
        words: the column with the words; in a CoNLL file it is the first, called ``tokens``.
        tags: the column with the tags, strings or whole numbers; of a CoNLL file, the last column
            is called ``tags``, and those between are ``column2``, ``column3``, ...
        options: those of every data module, see ``TextDataModule``.

    Raises:
        InputError: an option is out of its range.
    """

    tasks = ("token-classification",)

    def __init__(
        self, *, words: str = "tokens", tags: str = "tags", **options: KeywordsOf[RowOptions]
    ) -> None:
        super().__init__(text=words, **options)
        self.tags = tags
        self._scheme: LabelScheme | None = None
        self._encoded_tags: dict[SplitName, _Tags] = {}
        self._word_lists: dict[SplitName, pa.ChunkedArray] = {}

    @property
    def label_frequencies(self) -> list[float] | None:
        """Fraction of the words of the training file that have each tag."""
        if "train" not in self._encoded_tags or self.num_labels is None:
            return None
        values = self._encoded_tags["train"].values
        counts = np.bincount(values, minlength=self.num_labels)
        return [float(count) / len(values) for count in counts]

    def words_of(self, example_id: int) -> tuple[list[str], NDArray[np.int64]]:
        """The words of an example, and the places of their first tokens, as far as they have one.

        Args:
            example_id: of a batch of a split that ``setup`` has opened.
        """
        origin, row = SPLITS[example_id // first_id("validation")], row_of(example_id)
        if origin not in self._word_lists:
            table = self.sources[origin].read(self.columns, limit=self.limits.get(origin))
            self._word_lists[origin] = table.column(0)
        words: list[str] = self._word_lists[origin][row].as_py()
        return words, self._words(origin, np.array([row])).starts(0)

    def _encoding(self) -> Encoding:
        # Whole texts: cutting to max_length is done on the ids.
        return Encoding(special_tokens=False, words=True)

    def _words(self, origin: SplitName, rows: NDArray[np.int64]) -> StoredWords:
        assert self.tokenizer is not None
        prefix, suffix = special_tokens_around(self.tokenizer)
        return StoredWords(
            self._tokens(origin),
            rows,
            first_id(origin) + rows,
            max_length=self.max_length,
            prefix=prefix,
            suffix=suffix,
        )

    def _sequences(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Sequences:
        words = self._words(origin, rows)
        cut, lost = words.lost()
        if cut:
            rank_zero_info(
                f"data.max_length: {cut} of {len(rows)} {split} rows are longer than "
                f"{self.max_length} tokens, and their last {lost} words are left out."
            )
        return words

    def _targets(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Targets:
        return _WordTags(self._encoded_tags[origin], rows, self._words(origin, rows))

    def _learn(self, stage: str) -> None:
        """Learn what the tags mean, and look at all those of the stage and of the test split."""
        if self._scheme is None:
            self._scheme = self._find_scheme(self._known())
            if self._scheme is not None and stage == "fit":
                rank_zero_info(f"data.tags: {self._scheme.describe()}.")
        if self._scheme is None:
            return
        self.num_labels = self._scheme.num_labels
        self.label_names = list(self._scheme.names or ())
        later: list[SplitName] = ["test"] if stage == "fit" and self.has_test else []
        for split in (*splits_of(stage), *later):
            origin = self._origin(split)
            if split != "predict" and origin not in self._encoded_tags:
                self._encoded_tags[origin] = self._encoded(origin, self._scheme)

    def _known(self) -> KnownLabels:
        if self.known_labels is None and self.trainer is not None:
            self.known_labels = getattr(self.trainer.lightning_module, "known_labels", None)
        return replace(
            self.known_labels or KnownLabels(), problem_type="single_label_classification"
        )

    def _find_scheme(self, known: KnownLabels) -> LabelScheme | None:
        """The model's, or read off the training rows; where there are none, off others."""
        if known.names is not None:
            return scheme_of_model(known)
        for origin in SPLITS:
            source = self.sources.get(origin)
            if source is not None and self.tags in source.columns():
                tags = self._read(origin)
                with _naming_the_option():
                    scheme = label_scheme(tags.flat, tags.class_names, source.name, known)
                return scheme if tags.class_names or known.num_labels else _completed(scheme)
        return None

    def _encoded(self, origin: SplitName, scheme: LabelScheme) -> "_Tags":
        tags, where = self._read(origin), self.sources[origin].name
        with _naming_the_option():
            try:
                values = scheme.encode(tags.flat, where, tags.class_names)
            except InputError:
                for row in range(len(tags.offsets) - 1):  # the row to blame
                    scheme.encode(tags.of_row(row), f"{where}, row {row + 1}", tags.class_names)
                raise
        return _Tags(values, tags.offsets)

    def _read(self, origin: SplitName) -> TagLists:
        source = self.sources[origin]
        table = source.read([*self.columns, self.tags], limit=self.limits.get(origin))
        names = source.class_names(self.tags)
        return tag_lists(table, self.columns[0], self.tags, names, source.name)

    def _columns_of(self, split: SplitName) -> dict[str, str]:
        tagged = {} if split == "predict" else {self.tags: "tags"}
        return {**dict.fromkeys(self.columns, "words"), **tagged}


@dataclass(frozen=True)
class _Tags:
    """The tags of all rows as numbers of outputs.

    Args:
        values: [W] of all rows, one after another.
        offsets: [N + 1] where each row begins.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]


def _completed(scheme: LabelScheme) -> LabelScheme:
    names = tuple(completed(scheme.names or ()))
    return replace(scheme, names=names, num_labels=len(names))


@contextmanager
def _naming_the_option() -> Iterator[None]:
    """Errors about labels name the option that they come from here."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("data.label", "data.tags")) from error


class _WordTags(Targets):
    """Puts the tags of the rows' words at their first tokens."""

    def __init__(self, tags: _Tags, rows: NDArray[np.int64], words: StoredWords) -> None:
        self.tags = tags
        self.rows = rows
        self.words = words

    def __call__(self, batch: Batch, request: BatchRequest) -> None:
        labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
        for place, index in enumerate(request.indices):
            starts, first = self.words.starts(index), self.tags.offsets[self.rows[index]]
            tags = self.tags.values[first : first + len(starts)]
            labels[place, torch.from_numpy(starts)] = torch.from_numpy(tags)
        batch["labels"] = labels
