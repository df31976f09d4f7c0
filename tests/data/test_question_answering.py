"""Questions and contexts, from files to windows and labels."""

import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from lightning_compress.data import QuestionAnsweringDataModule
from lightning_compress.data.answer_labels import AnswerLabel, decoded
from lightning_compress.data.local_files import column_names, format_of, read_rows
from lightning_compress.data.questions import Answer, Question
from lightning_compress.data.splits import first_id
from lightning_compress.data.windows import windows_of
from lightning_compress.errors import InputError

Build = Callable[..., QuestionAnsweringDataModule]

CONTEXT = "good abc bad xyz good w bad q r s t u v good bad efg h i j"


def row(question: str, *answers: str, context: str = CONTEXT) -> dict[str, Any]:
    places = [context.index(answer) for answer in answers]
    return {
        "question": question,
        "context": context,
        "answers": {"text": list(answers), "answer_start": places},
    }


ROWS = [row("a", "abc"), row("b c", "bad q r", "q"), row("good", "efg h"), row("x", "v good")] * 4


@pytest.fixture
def asked(tmp_path: Path, bert_tokenizer: str) -> Build:
    """A data module on 16 questions for training and 4 for the test, or on what is given."""

    def build(
        train: Any = ROWS, test: Any = ROWS[:4], **options: Any
    ) -> QuestionAnsweringDataModule:
        for name, rows in (("train", train), ("test", test)):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        defaults: dict[str, Any] = {
            "path": str(tmp_path),
            "tokenizer": bert_tokenizer,
            "max_length": 20,
            "overlap": 6,
            "batch_size": 3,
            "cache_dir": str(tmp_path / "cache"),
        }
        return QuestionAnsweringDataModule(**{**defaults, **options})

    return build


@pytest.mark.parametrize("name", ["bert_tokenizer", "gpt2_tokenizer"])
def test_windows_cover_the_context_and_overlap(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(name))
    question = Question("b c", CONTEXT, (Answer("bad q r", CONTEXT.index("bad q r")),))
    windows = list(windows_of(tokenizer, [question], max_length=20, overlap=6))
    whole = tokenizer(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)
    seen = [tuple(span) for window in windows for span in window.offsets.tolist()]
    assert set(seen) == {tuple(span) for span in whole["offset_mapping"]}
    assert len(windows) > 1
    for one, other in pairwise(windows):
        assert one.offsets[-6:].tolist() == other.offsets[:6].tolist()
    for window in windows:
        assert len(window.tokens) <= 20
        ids = window.tokens[window.first : window.first + len(window.offsets)].tolist()
        assert ids == [
            whole["input_ids"][whole["offset_mapping"].index(tuple(span))]
            for span in window.offsets.tolist()
        ]
    assert any(window.span(question.answers[0]) for window in windows)


def test_labels_stand_at_the_tokens_of_the_answer(asked: Build) -> None:
    data = asked()
    data.setup("fit")
    data.setup("test")
    assert data.tokenizer is not None
    found = set()
    for batch in data.test_dataloader():
        for ids, label, example in zip(
            batch["input_ids"], batch["labels"], batch["example_id"].tolist(), strict=True
        ):
            known = decoded(label[0].numpy())
            question, window = data.window_of(example)
            assert (known.question, known.first) == (window.row, window.first)
            assert known.text == question.context[window.begin : window.end]
            assert list(known.answers) == ROWS[known.question]["answers"]["text"]
            if not known.end:
                assert window.span(question.answers[0]) is None
                continue
            tokens = ids[known.start : known.end + 1]
            assert data.tokenizer.decode(tokens) == known.answers[0]
            start, end = known.start - known.first, known.end - known.first
            part = known.text[known.offsets[start, 0] : known.offsets[end, 1]]
            assert part == known.answers[0]
            found.add(known.question)
    assert found == {0, 1, 2, 3}


def test_training_and_validation_share_no_question(asked: Build) -> None:
    data = asked()
    data.setup("fit")
    parts = [
        {
            data.window_of(example)[1].row
            for batch in loader
            for example in batch["example_id"].tolist()
        }
        for loader in (data.train_dataloader(), data.val_dataloader())
    ]
    assert parts[0] | parts[1] == set(range(16))
    assert not parts[0] & parts[1]


def test_labels_are_read_as_they_were_written() -> None:
    label = AnswerLabel(
        start=3, end=4, question=70_000, unanswerable=True, first=2,
        offsets=np.array([[0, 2], [3, 5]], dtype=np.int32), text="aé 😀b",
        answers=["é", "😀b"],
    )  # fmt: skip
    again = decoded(label.encoded(label.size + 5))
    assert again.offsets.tolist() == label.offsets.tolist()
    for name in ("start", "end", "question", "unanswerable", "first", "text", "answers"):
        assert getattr(again, name) == getattr(label, name)


def test_the_forms_of_answers(asked: Build) -> None:
    flat = [
        {
            **one,
            "answers": one["answers"]["text"][0],
            "answer_start": one["answers"]["answer_start"][0],
        }
        for one in ROWS
    ]
    listed = [
        {**one, "answers": [{"text": text, "answer_start": start}
                            for text, start in zip(*one["answers"].values(), strict=True)]}
        for one in ROWS
    ]  # fmt: skip
    for rows in (ROWS, flat, listed):
        data = asked(train=rows, test=rows)
        data.setup("fit")
        data.setup("test")
        spans = [
            (example, *label[0, :2].tolist())
            for batch in data.test_dataloader()
            for example, label in zip(batch["example_id"].tolist(), batch["labels"], strict=True)
        ]
        if rows is ROWS:
            expected = sorted(spans)
        assert sorted(spans) == expected


def test_nested_files_are_read(tmp_path: Path) -> None:
    nested = {
        "version": "1.1",
        "data": [
            {"title": "t", "paragraphs": [
                {"context": "a b", "qas": [
                    {"id": 1, "question": "b?", "answers": [{"text": "b", "answer_start": 2}]},
                    {"id": 2, "question": "c?", "answers": [], "is_impossible": True},
                ]},
            ]},
        ],
    }  # fmt: skip
    file = tmp_path / "dev.json.gz"
    file.write_bytes(gzip.compress(json.dumps(nested, indent=1).encode()))
    form = format_of(file)
    assert form == "squad"
    columns = column_names(file, form)
    rows = read_rows(file, form, columns).to_pylist()
    assert [one["question"] for one in rows] == ["b?", "c?"]
    assert rows[0]["answers"] == {"text": ["b"], "answer_start": [2]}
    assert {one["context"] for one in rows} == {"a b"}
    (tmp_path / "rows.json").write_text('{"data": 1}\n{"data": 2}')
    assert format_of(tmp_path / "rows.json") == "jsonl"
    (tmp_path / "broken.json").write_text('{"data": [{"title": "x"}]}')
    with pytest.raises(InputError, match="data > paragraphs > qas"):
        read_rows(tmp_path / "broken.json", "squad", ["context"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({**ROWS[0], "context": "  "}, "row 5 has no text in column context"),
        ({**ROWS[0], "question": None}, "row 5 has no text in column question"),
        ({**ROWS[0], "answers": {"text": ["abc"], "answer_start": [6]}},
         "row 5: the answer 'abc' is not at character 6 of its context, it stands at 5"),
        ({**ROWS[0], "answers": {"text": ["nowhere"], "answer_start": [6]}},
         "does not stand there"),
        ({**ROWS[0], "answers": {"text": [], "answer_start": []}}, r"set data\.unanswerable"),
        ({**ROWS[0], "answers": {"text": ["abc"], "answer_start": []}},
         "row 5 has .* in column answers"),
        ({**ROWS[0], "question": "a b c d e f g"},
         "row 5 has a question of 7 tokens, which with 3 special tokens and data.overlap 6"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("split", ["train", "test"])
def test_wrong_rows_are_named_before_training(
    asked: Build, wrong: dict[str, Any], message: str, split: str
) -> None:
    with pytest.raises(InputError, match=message):
        asked(**{split: [*ROWS[:4], wrong]}, max_length=16).setup("fit")


def test_questions_without_answers_point_at_the_first_token(asked: Build) -> None:
    none = {**ROWS[0], "answers": {"text": [], "answer_start": []}}
    data = asked(train=[*ROWS, none, none], test=[none], unanswerable=True)
    data.setup("fit")
    data.setup("test")
    for batch in data.test_dataloader():
        assert batch["labels"][:, 0, :2].sum() == 0
        assert all(not decoded(label[0].numpy()).answers for label in batch["labels"])
    assert data.window_of(first_id("test"))[0].answers == ()
