"""The built-in corpus: generated reviews whose sentiment has to be understood.

``grammar.py`` holds the rules, ``frames.py`` and ``words.py`` what they combine, and
``vocabulary.txt`` the WordPiece vocabulary, which ``benchmarks/builtin_corpus.py --vocabulary``
trains.
"""

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from lightning_compress.data.builtin.grammar import write_pair

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import BertTokenizer


VOCABULARY = Path(__file__).with_name("vocabulary.txt")


_PAIRS = {"train": 6000, "test": 1000}


def builtin_corpus(seed: int = 0) -> "DatasetDict":
    """12,000 reviews to train on and 2,000 to test on, half of them positive.

    Reviews come in pairs that differ in the words of the verdict alone; both of a pair are in one
    split, and no text occurs twice.

    Args:
        seed: the same seed gives the same reviews.

    Returns:
        Splits ``train`` and ``test`` with the columns ``text`` and ``label`` (0 negative, 1
        positive).
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])}
    )
    # The test split has a stream of its own: the rows that follow the training rows in theirs
    # served as validation when the recipe and the corpus were designed.
    streams = {"train": Random(seed), "test": Random(f"test {seed}")}
    seen = set[str]()
    splits = {}
    for split, pairs in _PAIRS.items():
        random, texts = streams[split], list[str]()
        while len(texts) < 2 * pairs:
            pair = write_pair(random)
            if seen.isdisjoint(pair):
                seen.update(pair)
                texts.extend(pair)
        columns = {"text": texts, "label": [0, 1] * pairs}
        splits[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)


def builtin_tokenizer() -> "BertTokenizer":
    """The corpus's own lower-casing WordPiece tokenizer, in BERT's format."""
    from transformers import BertTokenizer

    return BertTokenizer(str(VOCABULARY), model_max_length=128)
