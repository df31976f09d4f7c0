"""What compression costs on each kind of task, with a real pretrained encoder.

    python benchmarks/tasks_table.py [--tasks stsb wnut17 mrpc clinc150 squad] [--seeds 0 1 2]

all-MiniLM-L6-v2 is fine-tuned ("dense"). From that model: heads and neurons are removed until half
of the multiply-accumulates (MACs) are left, while the dense model teaches ("half"); both are
quantized to int8 after training ("int8", "half, int8"). Each is measured on the test split. Nothing
is chosen on it: the number of epochs is fixed and the last weights are taken.

Prints a table. Results are kept in logs/tasks_table and reused.
"""

import argparse
import gzip
import json
import logging
import math
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from studies import bare_trainer

from lightning_compress import data as data_modules
from lightning_compress import load_compressed, quantize_, save_compressed
from lightning_compress.callbacks import StructuredPruning
from lightning_compress.evaluation.footprint import count_macs
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.quantization import QuantizationConfig

ENCODER = "../shared/models/all-MiniLM-L6-v2"
SHARED = Path("../shared/data")
ROOT = Path("logs/tasks_table")
VARIANTS = ("untrained", "dense", "half", "int8", "half, int8")


@dataclass(frozen=True)
class Study:
    """A task, its data and how long each model is trained."""

    metric: str
    data: str
    options: dict[str, Any]
    task: str = "sequence-classification"
    epochs: int = 2
    half_epochs: int = 1
    learning_rate: float = 2e-4
    half_learning_rate: float = 2e-4
    score: str = "fisher"


def three(folder, train, validation, test):
    """Options of data in three files."""
    splits = {"train": train, "validation": validation, "test": test}
    return {"path": str(SHARED / folder), "splits": splits}


def clinc150():
    """The in-scope part of CLINC150 in files that data modules read."""
    folder = ROOT / "clinc150"
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(SHARED / "clinc150" / "data_full.json.gz", "rt") as file:
        splits = json.load(file)
    for name in ("train", "val", "test"):
        lines = [json.dumps({"text": text, "label": label}) for text, label in splits[name]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "path": str(folder),
        "splits": {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"},
    }


STUDIES = {
    "stsb": Study(
        "spearman",
        "SentencePairDataModule",
        three("stsb", "train.tsv.gz", "dev.tsv.gz", "test.tsv.gz") | {"score_range": [0, 5]},
        task="sentence-similarity",
        epochs=1,
        learning_rate=5e-5,
        half_learning_rate=5e-5,
        # The best of the scores on the dev split.
        score="activation",
    ),
    "wnut17": Study(
        "f1",
        "TokenClassificationDataModule",
        three("wnut17", "train.conll.gz", "dev.conll.gz", "test.conll.gz"),
        task="token-classification",
        epochs=3,
        half_epochs=2,
    ),
    "clinc150": Study("accuracy", "TextClassificationDataModule", {}, learning_rate=4e-4),
    "mrpc": Study(
        "accuracy",
        "TextClassificationDataModule",
        three("mrpc", "train.tsv", "dev.tsv", "test.tsv")
        | {"text": ["#1 String", "#2 String"], "label": "Quality"},
    ),
    "squad": Study(
        "f1",
        "QuestionAnsweringDataModule",
        {
            "path": str(SHARED / "squad"),
            "splits": {"train": "train_raw.jsonl.gz", "test": "dev-v1.1.json.gz"},
            "answers": "answer",
            "max_length": 256,
            "limits": {"train": 1500, "test": 1000},
        },
        task="question-answering",
    ),
}


def data_for(name, seed, tokenizer):
    """The data module of a study."""
    study = STUDIES[name]
    options = clinc150() if name == "clinc150" else study.options
    return getattr(data_modules, study.data)(
        **{"max_length": 128, "batch_size": 32} | options, tokenizer=tokenizer, seed=seed
    )


def trained(name, variant, seed, folder, dense=None):
    """Train a model and save it; gives the seconds."""
    study = STUDIES[name]
    L.seed_everything(seed, verbose=False)
    data = data_for(name, seed, ENCODER)
    # Without dropout, which a CPU is slow at and so short a training does not need.
    options = {
        "task": study.task,
        "config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "learning_rate": study.learning_rate if dense is None else study.half_learning_rate,
    }
    callbacks, epochs = [], study.epochs
    if dense is None:
        module = FineTuningModule(pretrained=ENCODER, **options)
    else:
        module = DistillationModule(pretrained=str(dense), teacher="dense", **options)
        epochs = study.half_epochs
        callbacks = [
            StructuredPruning(
                removed_macs_fraction=0.5, pruning_steps=4, warmup=0.0, recovery=0.6,
                calibration_examples=128, score=study.score,
            )
        ]  # fmt: skip
    trainer = bare_trainer(
        folder.parent,
        max_epochs=epochs,
        callbacks=callbacks,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    save_compressed(module.model, folder, data.tokenizer)
    return seconds


def measured(name, seed, folder):
    """The metrics of a saved model on the test split, its MACs, bytes and test examples."""
    study = STUDIES[name]
    data = data_for(name, seed, ENCODER)
    module = FineTuningModule(pretrained=str(folder), task=study.task)
    found = bare_trainer(folder).test(module, datamodule=data, verbose=False)[0]
    batches = list(data.test_dataloader())
    return {
        "metrics": {one: found[one] for one in sorted(found)},
        "macs": count_macs(module.model, batches[0]),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "examples": sum(len(batch["labels"]) for batch in batches),
    }


def quantized(folder, saved):
    """Quantize a saved model to int8 and save it."""
    model = load_compressed(folder)
    quantize_(model, QuantizationConfig("int8-dynamic"))
    save_compressed(model, saved)


def variants_of(name):
    """The encoder as it is can be measured where embeddings are all that is asked for."""
    return [one for one in VARIANTS if one != "untrained" or name == "stsb"]


def run(name, seed):
    """All variants of one seed, each measured once."""
    place = ROOT / f"{name}-seed{seed}"
    found = {}
    for variant in variants_of(name):
        result, folder = place / f"{variant}.json", place / variant
        if not result.is_file():
            print(f"running {name}, {variant}, seed {seed}", flush=True)
            seconds = 0.0
            if variant == "untrained":
                folder = Path(ENCODER)
            elif variant == "dense":
                seconds = trained(name, variant, seed, folder)
            elif variant == "half":
                seconds = trained(name, variant, seed, folder, dense=place / "dense")
            else:
                quantized(place / ("half" if "half" in variant else "dense"), folder)
            place.mkdir(parents=True, exist_ok=True)
            result.write_text(json.dumps({"seconds": seconds, **measured(name, seed, folder)}))
        found[variant] = json.loads(result.read_text())
    return found


def spread(values):
    """Mean and, of several, standard deviation."""
    behind = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{behind}"


def table(name, seeds):
    study = STUDIES[name]
    runs = [run(name, seed) for seed in seeds]
    key = f"test_{study.metric}"
    dense = [100 * one["dense"]["metrics"][key] for one in runs]
    share, examples = statistics.mean(dense) / 100, runs[0]["dense"]["examples"]
    # Of a fraction; a correlation's is (1 - r^2) / sqrt(n), of pairs, which are two examples each.
    error = (
        (1 - share**2) / math.sqrt(examples / 2)
        if study.metric == "spearman"
        else math.sqrt(share * (1 - share) / examples)
    )
    print(f"\n{name}: {study.metric} in %, {examples} test examples, seeds {list(seeds)}, "
          f"standard error about {100 * error:.2f} points\n")  # fmt: skip
    print(f"| model | {study.metric} | to dense | MACs | bytes | minutes |")
    print("| --- | --- | --- | --- | --- | --- |")
    for variant in variants_of(name):
        values = [100 * one[variant]["metrics"][key] for one in runs]
        gaps = [value - whole for value, whole in zip(values, dense, strict=True)]
        macs, size = (
            100 * statistics.mean(one[variant][what] / one["dense"][what] for one in runs)
            for what in ("macs", "bytes")
        )
        minutes = statistics.median(one[variant]["seconds"] for one in runs) / 60
        print(f"| {variant} | {spread(values)} | {spread(gaps)} | {macs:.0f} % | {size:.0f} % | "
              f"{minutes:.1f} |")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(STUDIES), choices=STUDIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name in arguments.tasks:
        table(name, arguments.seeds)


if __name__ == "__main__":
    main()
