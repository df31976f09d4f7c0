"""Tokenizers: loaded, fingerprinted, and the special tokens that they add."""

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_compress.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer from a folder or the Hub; without a padding token it pads with its end.

    Raises:
        InputError: there is no such tokenizer, or it has nothing to pad with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(
            f"data.tokenizer: {name} is neither a folder with a tokenizer nor one that could be "
            f"loaded from the Hub ({first_line(error)}). Check the name and the "
            "network, or give a folder"
        ) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # What transformers makes of a folder with a model's configuration alone.
        raise InputError(
            f"data.tokenizer: {name} is a model without a tokenizer: name the tokenizer that it "
            "was trained with"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"data.tokenizer: {name} has neither a padding token nor an end-of-text token: add "
                "pad_token to its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_for(path: str | None, name: str | None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of this name; the built-in corpus (no path) has one of its own.

    Raises:
        InputError: no tokenizer is named for other data, or it cannot be loaded.
    """
    if name is not None:
        return load_tokenizer(name)
    if path is not None:
        raise InputError(
            "data.tokenizer: name the tokenizer that the model was trained with, a folder or a "
            "Hub name; only the built-in corpus has one of its own"
        )
    from lightning_compress.data.builtin.corpus import builtin_tokenizer

    tokenizer: PreTrainedTokenizerBase = builtin_tokenizer()
    return tokenizer


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many embeddings a model needs for a tokenizer: its largest id, and 1.

    That is more than it has tokens where its ids have gaps.
    """
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def special_tokens_around(
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and behind a single text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    surrounded = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(surrounded)) if surrounded[i : i + len(bare)] == bare)
    return tuple(surrounded[:start]), tuple(surrounded[start + len(bare) :])


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of all that decides about a tokenizer's ids, not of its name or place."""
    digest = hashlib.sha256(f"{type(tokenizer).__name__} {tokenizer.truncation_side}".encode())
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        # Left over from the last call and set again by the next: not part of the tokenizer.
        backend.no_truncation()
        backend.no_padding()
        digest.update(backend.to_str().encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()
