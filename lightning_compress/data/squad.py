"""Questions out of SQuAD's nested JSON files, one row a question.

Rajpurkar, Zhang, Lopyrev, Liang, "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
2016, arXiv:1606.05250; Rajpurkar, Jia, Liang, "Know What You Don't Know: Unanswerable Questions for
SQuAD", 2018, arXiv:1806.03822.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lightning_compress.data.json_rows import parsed
from lightning_compress.errors import InputError

_HEAD = re.compile(r'\s*\{\s*("version"\s*:\s*"[^"]*"\s*,\s*)?"data"\s*:\s*\[')
COLUMNS = ["id", "context", "question", "answers"]


def is_squad(lines: IO[str]) -> bool:
    """Whether a JSON file begins as SQuAD's do."""
    return _HEAD.match(lines.read(1000)) is not None


def squad_rows(lines: IO[str], file: Path) -> Iterator[dict[str, Any]]:
    """The questions of a file with ``id``, ``context``, ``question`` and ``answers``.

    Raises:
        InputError: the file is no JSON, or not nested as SQuAD's are.
    """
    whole = parsed(lines.read(), str(file))
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                for one in paragraph["qas"]:
                    answers = one.get("answers", [])
                    yield {
                        "id": str(one.get("id", "")),
                        "context": paragraph["context"],
                        "question": one["question"],
                        "answers": {
                            "text": [answer["text"] for answer in answers],
                            "answer_start": [answer["answer_start"] for answer in answers],
                        },
                    }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is not nested as SQuAD's files are, data > paragraphs > qas ({error!r}): mend "
            "it, or write one JSON object a line with context, question and answers"
        ) from error
