"""Where the rows come from: the built-in corpus, local files or folders, the Hub."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightning_compress.data.local_files import (
    FileFormat,
    column_names,
    format_by_name,
    format_of,
    read_rows,
)
from lightning_compress.data.places import place_named, require_file
from lightning_compress.data.splits import SPLITS, SplitName
from lightning_compress.errors import InputError, first_line, require_choice

if TYPE_CHECKING:
    import pyarrow as pa

# Words in a file name that mark its split, as in `datasets`.
_SPLIT_WORDS: dict[SplitName, str] = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing",
}
_UNLABELLED_WORDS = "unlabelled|unlabeled|unsupervised"


class Source(Protocol):
    """The rows of one split."""

    @property
    def name(self) -> str:
        """What error messages call it."""

    def columns(self) -> list[str]:
        """Names of its columns, without reading its rows."""

    def read(self, columns: Sequence[str], *, limit: int | None = None) -> "pa.Table":
        """Some columns of the first ``limit`` rows; those of csv and tsv files are strings."""

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Changes when the contents of these columns do."""

    def class_names(self, column: str) -> list[str] | None:
        """Names of the classes 0, 1, ... where the source itself declares them."""


@dataclass(frozen=True)
class FileSource:
    """One split in one or more local files, in this order; all have the same columns."""

    files: tuple[Path, ...]
    form: FileFormat | None = None

    @property
    def name(self) -> str:
        """The names of the files."""
        return ", ".join(str(file) for file in self.files)

    def columns(self) -> list[str]:
        """Columns that all the files have."""
        return list(self._columns)

    def read(self, columns: Sequence[str], *, limit: int | None = None) -> "pa.Table":
        """Rows of the files one after another."""
        import pyarrow as pa

        tables: list[pa.Table] = []
        for file in self.files:
            left = None if limit is None else limit - sum(table.num_rows for table in tables)
            if left == 0:
                break
            tables.append(read_rows(file, self._forms[file], columns, limit=left))
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowInvalid as error:
            raise InputError(f"the files {self.name} do not fit together: {error}") from error

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Hash of the files' bytes."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(self._forms[file].encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def class_names(self, column: str) -> list[str] | None:
        """Plain files declare no classes."""
        return None

    @cached_property  # a folder may hold thousands of files, and they are asked for again
    def _columns(self) -> list[str]:
        first, *others = (column_names(file, form) for file, form in self._forms.items())
        return [column for column in first if all(column in other for other in others)]

    @cached_property
    def _forms(self) -> dict[Path, FileFormat]:
        return {file: self.form or format_of(file) for file in self.files}


@dataclass(frozen=True)
class DatasetSource:
    """One split as a ``datasets.Dataset``: of the Hub or of the built-in corpus."""

    dataset: Any
    name: str

    def columns(self) -> list[str]:
        """Columns of the dataset."""
        return list(self.dataset.column_names)

    def read(self, columns: Sequence[str], *, limit: int | None = None) -> "pa.Table":
        """The rows as they lie; the dataset knows its own types."""
        dataset = self.dataset.select_columns(list(columns)).with_format("arrow")
        return dataset[:limit]

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Hash of the columns' contents."""
        digest = hashlib.sha256()
        for batch in self.read(columns).to_batches(max_chunksize=10_000):
            digest.update(batch.serialize())
        return digest.hexdigest()

    def class_names(self, column: str) -> list[str] | None:
        """Names of a ``ClassLabel`` column, also inside a list."""
        feature = self.dataset.features[column]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        return None if names is None else list(names)


def find_sources(
    *,
    path: str | None,
    config: str | None,
    splits: Mapping[SplitName, str | list[str]] | None,
    form: FileFormat | None,
    cache_dir: Path,
) -> dict[SplitName, Source]:
    """Find the source of every split, without reading any row.

    Args:
        path: None for the built-in corpus; a file (which is then the training split); a folder,
            whose files are assigned to splits by name; or a dataset on the Hub.
        config: which configuration of a Hub dataset.
        splits: files of each split, relative to ``path``, or a Hub dataset's own split names.
        form: the file format; None to infer it from the file extension.
        cache_dir: where ``datasets`` keeps what it downloads.

    Raises:
        InputError: a file or a split is missing or no known one, or the file of a split is
            ambiguous.
    """
    for split in splits or ():
        require_choice("a split in data.splits", split, SPLITS)
    if path is None:
        from lightning_compress.data.builtin.corpus import builtin_corpus

        return _dataset_splits(builtin_corpus(), "the built-in corpus", splits)
    place = place_named("data.path", path)
    if place.exists():
        if not place.is_dir():
            require_file("data.path", place)
        if config is not None:
            raise InputError(
                f"data.config is for datasets on the Hub, and {path} is local: drop it"
            )
        return _local_splits(place, splits, form)
    looks_local = path.startswith((".", "~")) or place.is_absolute() or path.count("/") > 1
    if looks_local or format_by_name(place):
        raise InputError(f"data.path: there is no file or folder {path}")
    return _dataset_splits(_from_hub(path, config, cache_dir), path, splits)


def is_single_file(path: str | None, splits: Mapping[SplitName, str | list[str]] | None) -> bool:
    """Whether all rows come from one file that is not said to be of one split."""
    return splits is None and path is not None and place_named("data.path", path).is_file()


def _from_hub(path: str, config: str | None, cache_dir: Path) -> Mapping[str, Any]:
    import datasets

    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(
            path, config, cache_dir=str(cache_dir / "datasets")
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        configured = f" with data.config {config}" if config else ""
        raise InputError(
            f"data.path: {path}{configured} is neither a local file or folder nor a dataset that "
            f"could be loaded from the Hub ({first_line(error)}). Check the name and the "
            "network, or download the files and give their folder"
        ) from error
    return loaded


def _dataset_splits(
    loaded: Mapping[str, Any], name: str, splits: Mapping[SplitName, str | list[str]] | None
) -> dict[SplitName, Source]:
    if splits is None:
        own: dict[SplitName, str] = {split: split for split in _SPLIT_WORDS if split in loaded}
        for word in _UNLABELLED_WORDS.split("|"):
            if word in loaded:
                own["unlabelled"] = word
        splits = own
    found: dict[SplitName, Source] = {}
    for split, given in splits.items():
        if not isinstance(given, str) or given not in loaded:
            raise InputError(
                f"data.splits.{split}: {name} has no split {given}; it has {', '.join(loaded)}"
            )
        found[split] = DatasetSource(loaded[given], f"{name} ({given})")
    return found


def _local_splits(
    place: Path, splits: Mapping[SplitName, str | list[str]] | None, form: FileFormat | None
) -> dict[SplitName, Source]:
    if splits is None:
        if place.is_file():
            return {"train": FileSource((place,), form)}
        return _by_file_name(place, form)
    folder = place if place.is_dir() else place.parent
    found: dict[SplitName, Source] = {}
    for split, given in splits.items():
        names, option = [given] if isinstance(given, str) else given, f"data.splits.{split}"
        if not names:
            raise InputError(f"{option} is empty: name a file, or leave it out")
        places = [folder / place_named(option, name) for name in names]
        files = tuple(place_named(option, str(place)) for place in places)
        for file in files:
            require_file(option, file)
        found[split] = FileSource(files, form)
    return found


def _by_file_name(folder: Path, form: FileFormat | None) -> dict[SplitName, Source]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and format_by_name(file))
    found: dict[SplitName, list[Path]] = {}
    for split, words in _SPLIT_WORDS.items():
        mine = _named_after(words, files)
        if not _are_parts(mine):
            names = ", ".join(file.name for file in mine)
            raise InputError(
                f"data.path: several files of {folder} could be its {split} split ({names}): "
                "choose with data.splits"
            )
        if mine:
            found[split] = mine
    if not found:
        raise InputError(
            f"data.path: no file in {folder} is named after a split (train, validation, test) and "
            "a format (.csv, .tsv, .jsonl, .parquet, .txt, .conll): name them in data.splits"
        )
    # Unlabelled texts are read on request only, so the search for them takes no file from another
    # split and raises no error where their file is ambiguous.
    taken = set(chain(*found.values()))
    others = [file for file in files if file not in taken]
    unlabelled = _named_after(_UNLABELLED_WORDS, others)
    if unlabelled and _are_parts(unlabelled):
        found["unlabelled"] = unlabelled
    return {split: FileSource(tuple(mine), form) for split, mine in found.items()}


def _named_after(words: str, files: Iterable[Path]) -> list[Path]:
    pattern = re.compile(rf"(?<![a-z])({words})(?![a-z])")
    return [file for file in files if pattern.search(file.name.lower())]


def _are_parts(files: Iterable[Path]) -> bool:
    """Whether they differ in numbers alone."""
    return len({re.sub(r"\d+", "", file.name) for file in files}) <= 1
