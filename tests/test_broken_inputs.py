"""No broken input ends in a traceback, a hang or a page: each is one line before training."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_compress.data import LanguageModelingDataModule, TextClassificationDataModule
from lightning_compress.modules import FineTuningModule
from lightning_compress.saving import save_compressed

from .broken_inputs import ALL, GOOD, LM, PAIRS, QA, QUERIES, TAGS, TEXT, Broken
from .families import tiny_options

TASKS = {
    TEXT: "sequence-classification",
    TAGS: "token-classification",
    QA: "question-answering",
    PAIRS: "sentence-similarity",
    QUERIES: "reranking",
    LM: "causal-lm",
}
Run = Callable[..., tuple[object, str]]


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def step(*_: Any, **__: Any) -> None:
        pytest.fail("the training started")

    monkeypatch.setattr(FineTuningModule, "training_step", step)
    monkeypatch.chdir(tmp_path)


def recipe_of(broken: Broken, text_files: Path, tmp_path: Path) -> dict[str, Any]:
    family = "gpt2" if broken.data == LM else "bert"
    options: dict[str, Any] = {
        "tokenizer": str(text_files / "tokenizer"),
        "max_length": 32,
        "batch_size": 4,
        "cache_dir": str(tmp_path / "cache"),
        **({"overlap": 4} if broken.data == QA else {}),
    }
    (tmp_path / "broken").mkdir()
    options |= broken.write(tmp_path / "broken")
    path = "lightning_compress.data."
    return {
        "trainer": {"accelerator": "cpu", "max_steps": 1, "enable_progress_bar": False},
        "model": {"task": TASKS[broken.data], "config": tiny_options(family)},
        "data": {"class_path": path + broken.data, "init_args": options},
    }


def the_line(code: object, printed: str) -> str:
    """The only line that says what is wrong."""
    assert code == 2, printed
    assert "Traceback" not in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert printed.endswith(f"{line}\n")
    assert len(line) < 1100
    return line


@pytest.mark.parametrize(
    "broken",
    [pytest.param(one, marks=pytest.mark.slow if one.slow else (), id=one.name) for one in ALL],
)
def test_a_broken_input_is_one_line(
    broken: Broken, text_files: Path, tmp_path: Path, run: Run
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of(broken, text_files, tmp_path)))
    assert re.search(broken.message, the_line(*run("fit", "--config", recipe)))


@pytest.mark.slow
@pytest.mark.parametrize("data", GOOD)
def test_the_rows_without_fault_are_read(
    data: str, text_files: Path, tmp_path: Path, run: Run
) -> None:
    def write(folder: Path) -> dict[str, Any]:
        lines = [json.dumps(one) for one in 4 * GOOD[data]]
        (folder / "train.jsonl").write_text("\n".join(lines))
        (folder / "dev.jsonl").write_text("\n".join(lines))
        return {"path": str(folder)}

    recipe = tmp_path / "recipe.yaml"
    made = recipe_of(Broken("none", write, "", data), text_files, tmp_path)
    recipe.write_text(yaml.safe_dump(made))
    with pytest.raises(pytest.fail.Exception, match="the training started"):
        run("fit", "--config", recipe)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["benchmark", "export"])
@pytest.mark.parametrize(
    "broken", [one for one in ALL if one.name in ("UTF-16 csv", "path 'fifo.csv'", "maps")],
    ids=lambda one: one.name,
)  # fmt: skip
def test_other_commands_refuse_it_as_well(
    command: str, broken: Broken, tiny_model: Any, text_files: Path, tmp_path: Path, run: Run
) -> None:
    save_compressed(tiny_model("bert"), tmp_path / "model")
    options = recipe_of(broken, text_files, tmp_path)["data"]["init_args"]
    given = [part for name, value in options.items() for part in (f"--data.{name}", value)]
    more = ["--format", "onnx", "--output", tmp_path / "out"] if command == "export" else []
    line = the_line(*run(command, tmp_path / "model", *more, *given))
    assert re.search(broken.message, line)


def test_a_wrong_mode_of_a_checkpoint_is_one_line(
    text_files: Path, tmp_path: Path, run: Run
) -> None:
    made = recipe_of(Broken("none", lambda _: {"path": None}, ""), text_files, tmp_path)
    options = {"monitor": "val_loss", "mode": "maximum"}
    path = "lightning.pytorch.callbacks.ModelCheckpoint"
    made["trainer"]["callbacks"] = [{"class_path": path, "init_args": options}]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(made))
    assert "mode" in the_line(*run("fit", "--config", recipe))


@pytest.mark.parametrize("end", ["csv", "csv.gz", "tsv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(end: str, tmp_path: Path) -> None:
    import gzip

    from lightning_compress.data.local_files import column_names, format_of, read_rows

    lines = {"csv": "text,label\nw1,a\n", "tsv": "text\tlabel\nw1\ta\n"}
    text = lines.get(end.removesuffix(".gz"), '{"text": "w1", "label": "a"}\n')
    content = text.encode("utf-8-sig")
    file = tmp_path / f"rows.{end}"
    file.write_bytes(gzip.compress(content) if end.endswith("gz") else content)
    form = format_of(file)
    assert column_names(file, form) == ["text", "label"]
    assert read_rows(file, form, ["text", "label"]).to_pylist() == [{"text": "w1", "label": "a"}]


def test_many_classes_are_taken_where_their_number_is_given(
    text_files: Path, tmp_path: Path
) -> None:
    count = 11_000
    lines = [json.dumps({"text": "w1", "label": i}) for i in range(count)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    data = TextClassificationDataModule(
        path=str(tmp_path), tokenizer=str(text_files / "tokenizer"), cache_dir=str(tmp_path)
    )
    module = FineTuningModule(config=tiny_options("bert"), num_labels=count)
    data.known_labels = module.known_labels
    data.setup("fit")
    assert data.num_labels == count


def test_an_odd_quotation_mark_within_a_text_is_text(text_files: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text\n5" disk w1\n"w2 ""w3"" "\n')
    data = LanguageModelingDataModule(
        path=str(tmp_path / "rows.csv"), tokenizer=str(text_files / "tokenizer"),
        cache_dir=str(tmp_path / "cache"), packing=False,
    )  # fmt: skip
    data.setup("test")
    assert len(data.examples("test")) == 2
