"""Texts or pairs of texts with labels: classes, several labels at once, or a number."""

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lightning_compress.data.dataloader import BatchRequest
from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.dataset import Sequences, Targets
from lightning_compress.data.label_column import columns_as_lists, shown
from lightning_compress.data.labels import (
    KnownLabels,
    LabelScheme,
    label_scheme,
    scheme_of_model,
)
from lightning_compress.data.options import TextDataOptions, check_columns
from lightning_compress.data.sequences import JoinedTexts, StoredTexts
from lightning_compress.data.splits import SPLITS, SplitName, first_id, splits_of
from lightning_compress.data.token_cache import Encoding
from lightning_compress.errors import InputError
from lightning_compress.types import Batch, KeywordsOf

if TYPE_CHECKING:
    import pyarrow as pa

TrainOn = Literal["labelled", "unlabelled", "both"]


class TextClassificationDataModule(TextDataModule):
    """Batches for sequence classification and regression.

    ``labels`` are [B] int64 classes, [B] float32 numbers or [B, C] float32 zeros and ones. A
    trained model says which of these, and what its outputs stand for (``known_labels`` of the
    module). Otherwise this follows from the training labels: whole numbers and strings are
    classes, numbers with a fraction make a regression, lists a multi-label problem. Pairs of texts
    go through the tokenizer's own pair encoding. Rows without a label have -100 for a class, else
    NaN.

    After ``setup``: ``tokenizer``, ``num_labels``, ``label_names``, ``problem_type``, and for
    training ``label_frequencies``.

    Args:
        label: the label column; or several columns of zeros and ones, one for each label of a
            multi-label problem, whose names the labels get.
        train_on: what training batches hold: the ``labelled`` rows of the ``train`` split, the
            ``unlabelled`` split, from which a student can be distilled, or ``both``, mixed. In any
            case the classes are those of the ``train`` labels, and without a validation split,
            validation rows are split off ``train``.
        options: those of every data module, see ``TextDataModule``.

    Raises:
        InputError: an option is out of its range.
    """

    tasks = ("sequence-classification",)

    def __init__(
        self,
        *,
        label: str | list[str] = "label",
        train_on: TrainOn = "labelled",
        **options: KeywordsOf[TextDataOptions],
    ) -> None:
        super().__init__(**options)
        if train_on not in get_args(TrainOn):
            raise InputError(
                f"data.train_on is {train_on!r}: it must be one of {', '.join(get_args(TrainOn))}"
            )
        self.label_columns = [label] if isinstance(label, str) else list(label)
        if not self.label_columns or len(set(self.label_columns)) < len(self.label_columns):
            raise InputError(
                f"data.label is {self.label_columns}: name the label column, or several "
                "different ones"
            )
        self.train_on = train_on
        self._scheme: LabelScheme | None = None
        self._labels: dict[SplitName, NDArray[Any]] = {}
        self._train_labels: NDArray[Any] | None = None

    @property
    def label_frequencies(self) -> list[float] | None:
        """Fraction of the labelled training rows with each label; None in a regression."""
        labels, scheme = self._train_labels, self._scheme
        if labels is None or scheme is None or scheme.names is None:
            return None
        if scheme.one_class:
            counts = np.bincount(labels, minlength=scheme.num_labels)
        else:
            counts = labels.sum(axis=0, dtype=np.float64)
        return [float(count) / len(labels) for count in counts]

    def _encoding(self) -> Encoding:
        return Encoding(max_length=self.max_length)

    def _sequences(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Sequences:
        labelled = self._texts(origin, rows)
        if split != "train" or self.train_on == "labelled":
            return labelled
        unlabelled = self._texts("unlabelled", np.arange(len(self._tokens("unlabelled"))))
        return unlabelled if self.train_on == "unlabelled" else JoinedTexts([labelled, unlabelled])

    def _targets(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Targets:
        labels = self._labels[origin][rows]
        if split == "train":
            self._train_labels = labels
        if split != "train" or self.train_on == "labelled":
            return _RowLabels(labels)
        assert self._scheme is not None, "read off the training rows"
        unknown = self._scheme.unknown(len(self._tokens("unlabelled")))
        return _RowLabels(
            unknown if self.train_on == "unlabelled" else np.concatenate([labels, unknown])
        )

    def _texts(self, origin: SplitName, rows: NDArray[np.int64]) -> StoredTexts:
        ids = first_id(origin) + rows
        return StoredTexts(self._tokens(origin), rows, ids, max_length=self.max_length)

    def _check_sources(self, stage: str) -> None:
        """The same, and the unlabelled texts where they are asked for."""
        wanted = stage == "fit" and self.train_on != "labelled"
        if wanted and "unlabelled" not in self.sources:
            raise InputError(
                f"data.train_on is {self.train_on}, and there is no unlabelled split in "
                f"{self.path or 'the built-in corpus'}: name its file in data.splits.unlabelled"
            )
        super()._check_sources(stage)
        if wanted:
            columns = self._columns_of("unlabelled")
            check_columns(self.sources["unlabelled"], "unlabelled", columns)

    def _learn(self, stage: str) -> None:
        """Learn what the labels mean, and look at all those of the stage."""
        if self._scheme is None:
            self._scheme = self._find_scheme(self._known())
            if self._scheme is not None and stage == "fit":
                rank_zero_info(f"data.label: {self._scheme.describe()}.")
        scheme = self._scheme
        if scheme is None:
            return
        if len(self.label_columns) > 1:
            self._require_all_labels(scheme)
        self.problem_type = scheme.problem_type
        self.num_labels = scheme.num_labels
        self.label_names = None if scheme.names is None else list(scheme.names)
        for split in splits_of(stage):
            origin = self._origin(split)
            if split != "predict" and origin not in self._labels:
                self._labels[origin] = scheme.encode(*self._raw_labels(origin))

    def _require_all_labels(self, scheme: LabelScheme) -> None:
        """Refuse label columns that are not those of a trained model's labels."""
        names = scheme.names or ()
        same = {one.casefold() for one in names} == {one.casefold() for one in self.label_columns}
        positions = KnownLabels(names=names).numbered and len(names) == len(self.label_columns)
        if not same and not positions:
            raise InputError(
                f"data.label names the columns {shown(self.label_columns)}, and the model has the "
                f"labels {shown(names)}: name one column for each label"
            )

    def _known(self) -> KnownLabels:
        """What the model says: set by a command, or asked of the module that is run."""
        if self.known_labels is None and self.trainer is not None:
            self.known_labels = getattr(self.trainer.lightning_module, "known_labels", None)
        return self.known_labels or KnownLabels()

    def _find_scheme(self, known: KnownLabels) -> LabelScheme | None:
        """The model's, or read off the training rows; where there are none, off others."""
        for origin in SPLITS if known.names is None or known.problem_type is None else ():
            source = self.sources.get(origin) if origin != "unlabelled" else None
            if source is not None and set(self.label_columns) <= set(source.columns()):
                labels, where, class_names = self._raw_labels(origin)
                return label_scheme(labels, class_names, where, known)
        return None if known.names is None else scheme_of_model(known)

    def _raw_labels(self, origin: SplitName) -> "tuple[pa.ChunkedArray, str, list[str] | None]":
        """Labels of a source, its name, and the names of its classes where it declares them."""
        source = self.sources[origin]
        table = source.read(self.label_columns, limit=self.limits.get(origin))
        if len(self.label_columns) > 1:
            return columns_as_lists(table, source.name), source.name, self.label_columns
        (label,) = self.label_columns
        return table.column(label), source.name, source.class_names(label)

    def _classes(self) -> NDArray[np.int64] | None:
        stratify = self._scheme is not None and self._scheme.one_class
        return self._labels["train"] if stratify else None

    def _columns_of(self, split: SplitName) -> dict[str, str]:
        labelled = (
            {} if split in ("predict", "unlabelled") else dict.fromkeys(self.label_columns, "label")
        )
        return {**super()._columns_of(split), **labelled}


class _RowLabels(Targets):
    """Adds the labels of the rows to a batch."""

    def __init__(self, labels: NDArray[Any]) -> None:
        self.label_columns = labels

    def __call__(self, batch: Batch, request: BatchRequest) -> None:
        batch["labels"] = torch.from_numpy(self.label_columns[request.indices])
