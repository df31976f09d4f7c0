"""What all tests share: tiny models of every family, and the real data where it is at hand."""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Tests never reach for the network; the libraries look at this when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Where transformers copies the code in saved folders; it finds it in one place for each process.
_modules = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = _modules.name

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import BertTokenizer, PreTrainedModel

from . import families


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave most tests of some families to the whole suite."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if any(parameters.get(key) in families.SLOW for key in ("family", "name")):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Builds the tiny classifier of a family, see :func:`tests.families.tiny_model`."""
    return families.tiny_model


@pytest.fixture
def tiny_bert(tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """The tiny BERT classifier."""
    return tiny_model("bert")


@pytest.fixture
def shared() -> Path:
    """The folder of real data and models beside the checkout; skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the real data and models in ../shared")
    return folder


class ToyData(L.LightningDataModule):
    """Sentences of 8 random tokens; token 7 among them makes the label 1. Stands for any data."""

    num_labels = 2
    problem_type = "single_label_classification"
    label_names = ("without", "with")
    tokenizer = None
    pad_token_id = 0
    max_length = 8
    task_name = "toy"

    def __init__(self, examples: int = 64, batch_size: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(8, 100, (examples, 8), generator=generator)
        labels = torch.arange(examples) % 2
        ids[labels == 1, 3] = 7
        self.rows = [
            {
                "input_ids": ids[i],
                "attention_mask": torch.ones(8, dtype=torch.long),
                "labels": labels[i],
                "example_id": torch.tensor(i),
            }
            for i in range(examples)
        ]
        self.batch_size = batch_size

    def _loader(self) -> DataLoader[dict[str, torch.Tensor]]:
        return DataLoader(
            self.rows,  # type: ignore[arg-type]  # a list is a map-style dataset
            self.batch_size,
            generator=torch.Generator().manual_seed(0),
        )

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        return self._loader()

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        return self._loader()

    def test_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        return self._loader()

    def predict_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        return self._loader()


@pytest.fixture
def toy_data() -> ToyData:
    """A small classification problem without text or files."""
    return ToyData()


class SaveEveryStep(L.Callback):
    """Leaves a checkpoint of each step, to resume from any of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        path = self.folder / f"step={trainer.global_step}.ckpt"
        if trainer.global_step and not path.exists():  # with accumulation: when it has just stepped
            trainer.save_checkpoint(path)


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Nested plain data with tensors are equal, bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    else:
        assert one == other, where


@pytest.fixture
def quiet_trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """A Trainer on the CPU that writes below the test's folder and draws no bars."""

    def build(**options: object) -> L.Trainer:
        defaults: dict[str, object] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": tmp_path,
        }
        return L.Trainer(**{**defaults, **options})  # type: ignore[arg-type]

    return build


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., str]:
    """Runs a script, whose first argument is the test's folder; gives what it says on stderr.

    For what needs processes of its own, such as training on two of them.
    """

    def run(code: str, *arguments: object, options: Sequence[str] = ()) -> str:
        script = tmp_path / "run.py"
        script.write_text(code)
        root = Path(__file__).resolve().parents[1]  # where it finds the package `tests`
        done = subprocess.run(
            [sys.executable, *options, str(script), str(tmp_path), *map(str, arguments)],
            capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


@pytest.fixture
def text_files(tmp_path: Path) -> Path:
    """A folder with train.csv and test.csv (columns text, label) and a tokenizer of 100 words."""
    words = [f"w{number}" for number in range(95)]
    folder = tmp_path / "texts"
    (folder / "tokenizer").mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join([*special, *words]))
    BertTokenizer(str(folder / "tokenizer" / "vocab.txt")).save_pretrained(folder / "tokenizer")
    draw = random.Random(0)
    for name, count in (("train", 120), ("test", 40)):
        rows = ["text,label"]
        for row in range(count):
            chosen = draw.choices(words[1:], k=draw.randint(3, 20))
            # The first word of the list is what makes a text positive.
            chosen[0] = words[0] if row % 2 else chosen[0]
            rows.append(f"{' '.join(chosen)},{['bad', 'good'][row % 2]}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str]]:
    """Run a command in this process; gives its exit code and what it printed."""

    from lightning_compress.cli import main as cli  # it is slow to import

    def call(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["lightning-compress", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call
