"""What the data modules share: from a source of rows to loaders of batches."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray

from lightning_compress.data import options as of_user
from lightning_compress.data.dataloader import (
    LengthBucketedBatches,
    ResumableLoader,
    batches_done,
)
from lightning_compress.data.dataset import Sequences, Targets, TokenBatches
from lightning_compress.data.labels import KnownLabels
from lightning_compress.data.local_files import FileFormat
from lightning_compress.data.places import place_named
from lightning_compress.data.sources import Source, find_sources, is_single_file
from lightning_compress.data.splits import SplitName, rows_of, splits_of
from lightning_compress.data.token_cache import Encoding, TokenStore, tokenized
from lightning_compress.data.tokenizer import tokenizer_for
from lightning_compress.errors import InputError
from lightning_compress.types import ProblemType

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextDataModule(LightningDataModule, ABC):
    """Reads, tokenizes and batches texts; subclasses add the targets.

    Only the splits of the running stage are read, so the test split is touched by the test loop
    alone. Without a validation split, one is split off the training rows (seeded). A single file
    is split in three; without a trainer, and for predictions, it is the test split as a whole. With
    several processes, every process reads a distinct part of every split.

    Args:
        path: a file, a folder whose files are named after their splits, or a dataset on the Hub;
            None for the built-in corpus.
        config: which configuration of a Hub dataset, such as ``mrpc`` of ``nyu-mll/glue``.
        splits: which file (relative to ``path``; several are joined) or which of a Hub dataset's
            own splits serves as ``train``, ``validation``, ``test``, ``predict`` and ``unlabelled``
            (texts whose labels, if there are any, are never read).
        format: the file format; None to infer it from the file extension.
        text: the text column, or two of them for pairs of texts.
        tokenizer: a folder or a Hub name; None for the built-in corpus's own.
        max_length: maximum tokens of a sequence.
        batch_size: examples of a training batch on each process.
        eval_batch_size: examples of any other batch; None: as in training.
        validation_fraction: fraction of the training rows used for validation; of a single file,
            as many are used for the test.
        limits: read only so many rows from the top of a split.
        seed: decides about the validation rows, the order of batches and the masks.
        num_workers: processes that make batches ahead; tokens lie ready, so 0 is quick.
        cache_dir: where tokens and downloaded datasets are kept.

    Raises:
        InputError: an option is out of its range.
    """

    tokenizer: "PreTrainedTokenizerBase | None" = None  # the first four are known after ``setup``
    num_labels: int | None = None
    label_names: list[str] | None = None
    problem_type: ProblemType | None = None
    known_labels: KnownLabels | None = None  # of the model; None: asked of the module in ``setup``
    _sources: dict[SplitName, Source] | None = None
    _order: LengthBucketedBatches | None = None
    _resumed_order: str | None = None

    def __init__(
        self,
        *,
        path: str | None = None,
        config: str | None = None,
        splits: dict[SplitName, str | list[str]] | None = None,
        format: FileFormat | None = None,
        text: str | list[str] = "text",
        tokenizer: str | None = None,
        max_length: int = 128,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        validation_fraction: float = 0.1,
        limits: dict[SplitName, int] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str = ".cache",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.path = path
        self.config = config
        self.splits = splits
        self.format = format
        self.columns = [text] if isinstance(text, str) else list(text)
        self.tokenizer_name = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.validation_fraction = validation_fraction
        self.limits: Mapping[SplitName, int] = limits or {}
        self.seed = seed
        self.num_workers = num_workers
        self.cache_dir = place_named("data.cache_dir", cache_dir)
        counts = {"batch_size": batch_size, "eval_batch_size": self.eval_batch_size}
        of_user.check_options(
            counts=counts | {f"limits.{split}": limit for split, limit in self.limits.items()},
            numbers={"num_workers": num_workers, "seed": seed},
            validation_fraction=validation_fraction,
            text=self.columns,
        )
        self._stores: dict[SplitName, TokenStore] = {}
        self._batches: dict[SplitName, TokenBatches] = {}

    @property
    def task_name(self) -> str:
        """Short name of the data, for reports."""
        if self.path is None:
            return "built-in"
        name = Path(self.path).expanduser().absolute().name.split(".")[0]
        return f"{name}/{self.config}" if self.config else name

    @property
    def pad_token_id(self) -> int:
        """What batches are filled up with; a tokenizer without padding token gives its end."""
        assert self.tokenizer is not None, "known after setup"
        return cast(int, self.tokenizer.pad_token_id)

    @property
    def sources(self) -> dict[SplitName, Source]:
        """Where the rows of each split come from; the splits that there are."""
        if self._sources is None:
            self._sources = find_sources(
                path=self.path,
                config=self.config,
                splits=self.splits,
                form=self.format,
                cache_dir=self.cache_dir,
            )
        return self._sources

    @property
    def has_test(self) -> bool:
        """Whether there are rows for the test loop."""
        return "test" in self.sources or is_single_file(self.path, self.splits)

    def prepare_data(self) -> None:
        """Download and tokenize what the running stage needs; Lightning calls it on one process."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self.setup(self.trainer.state.fn.value)

    def setup(self, stage: str) -> None:
        """Open the splits of a stage (``fit``, ``validate``, ``test`` or ``predict``)."""
        of_user.check_task(self, self.trainer)
        if self.tokenizer is None:
            tokenizer = tokenizer_for(self.path, self.tokenizer_name)
            of_user.check_length(tokenizer, self.max_length, texts=len(self.columns))
            self.tokenizer = tokenizer
        self._check_sources(stage)
        self._learn(stage)
        for split in splits_of(stage):
            if split not in self._batches:
                self._batches[split] = self._open(split)

    def examples(self, split: SplitName) -> TokenBatches:
        """The examples of a split that ``setup`` has opened."""
        assert split in self._batches, "known after setup"
        return self._batches[split]

    def retokenized(self, tokenizer: str) -> Self:
        """The same rows under the same ids, also where they are carved out, in other tokens.

        A new data module with the options of this one, not set up and without a trainer.

        Args:
            tokenizer: a folder or a Hub name.
        """
        options = {
            name: value
            for name, value in self.hparams.items()
            if not name.startswith("_")  # those the command line puts in
        }
        other = type(self)(**{**options, "tokenizer": tokenizer})
        other.known_labels = self.known_labels
        return other

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: which batches an epoch has."""
        return {} if self._order is None else {"order": self._order.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the checkpoint's batches; resuming in the middle of an epoch needs the same."""
        self._resumed_order = state_dict.get("order")

    def train_dataloader(self) -> ResumableLoader:
        """Batches of the training rows, shuffled by (seed, epoch)."""
        return self._loader("train", self.batch_size, training=True)

    def val_dataloader(self) -> ResumableLoader:
        """Batches of the validation rows."""
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> ResumableLoader:
        """Batches of the test split."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> ResumableLoader:
        """Batches without labels: of the ``predict`` split, or else of the test split."""
        return self._loader("predict", self.eval_batch_size)

    @abstractmethod
    def _encoding(self) -> Encoding:
        """How texts become tokens."""

    @abstractmethod
    def _sequences(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Sequences:
        """Some rows of a source as examples."""

    @abstractmethod
    def _targets(self, split: SplitName, origin: SplitName, rows: NDArray[np.int64]) -> Targets:
        """What the batches of these examples ask for."""

    def _learn(self, stage: str) -> None:
        """Find out what must be known before the splits of a stage are opened."""

    def _classes(self) -> NDArray[np.int64] | None:
        """Class of each training row, each of which gives its share to validation."""
        return None

    def _groups(self) -> NDArray[np.int64] | None:
        """Group of each training row, counted from 0, where the rows of a group stay together."""
        return None

    def _columns_of(self, split: SplitName) -> dict[str, str]:
        """Columns that a split must have, and the options that name them."""
        return dict.fromkeys(self.columns, "text")

    def _check_sources(self, stage: str) -> None:
        """See that the columns are there; before training those of the test split, too."""
        of_user.check_limits(self.limits, self.sources)
        later = [split for split in self.sources if stage == "fit" and split != "unlabelled"]
        for split in (*splits_of(stage), *later):
            of_user.check_columns(self.sources[self._origin(split)], split, self._columns_of(split))

    def _tokens(self, origin: SplitName) -> TokenStore:
        """Token ids of all rows of a source."""
        assert self.tokenizer is not None
        if origin not in self._stores:
            self._stores[origin] = tokenized(
                self.sources[origin],
                self.columns,
                self.tokenizer,
                self._encoding(),
                limit=self.limits.get(origin),
                cache_dir=self.cache_dir,
            )
        return self._stores[origin]

    def _rows(self, origin: SplitName) -> int:
        """Number of rows of a source."""
        return len(self._tokens(origin))

    def _origin(self, split: SplitName) -> SplitName:
        """The source that a split's rows come from."""
        stand_in: dict[SplitName, SplitName] = {"validation": "train", "predict": "test"}
        origin = split if split in self.sources else stand_in.get(split, split)
        if origin not in self.sources and self.has_test:
            origin = "train"
        if origin not in self.sources:
            raise InputError(
                f"data.path: there is no {origin} split in {self.path or self.task_name}: name "
                f"its file in data.splits.{origin}"
            )
        return origin

    def _open(self, split: SplitName) -> TokenBatches:
        origin = self._origin(split)
        rows = np.arange(self._rows(origin))
        whole = split == "predict" or (split == "test" and self.trainer is None)
        if origin == "train" and "validation" not in self.sources and not whole:
            rows = rows_of(
                split,
                len(rows),
                fraction=self.validation_fraction,
                seed=self.seed,
                classes=self._classes(),
                groups=self._groups(),
                with_test=is_single_file(self.path, self.splits),
            )
        return TokenBatches(
            self._sequences(split, origin, rows),
            pad_token_id=self.pad_token_id,
            max_length=self.max_length,
            add_targets=None if split == "predict" else self._targets(split, origin, rows),
        )

    def _loader(self, split: SplitName, batch_size: int, training: bool = False) -> ResumableLoader:
        batches, trainer = self.examples(split), self.trainer
        share = (trainer.distributed_sampler_kwargs if trainer is not None else None) or {}
        order = LengthBucketedBatches(
            batches.padded, batch_size=batch_size, seed=self.seed, training=training, **share
        )
        if training:
            self._order = order
        return ResumableLoader(
            batches,
            order=order,
            done=self._batches_done if training else None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )

    def _batches_done(self) -> int:
        """Batches of the epoch that have been trained on; more than 0 only after a resume."""
        assert self._order is not None
        return batches_done(self.trainer, self._order, self._resumed_order)
