"""Distillation on real text: how much of the gap between a small student and its teacher it closes.

    python benchmarks/distillation_table.py [--task imdb] [--seeds 0 1 2 3 4] [--methods plain ...]

The teacher is imdb-bert-mini (4 layers, width 256), fine-tuned on all labelled texts. The student
has few labels: 2,000 reviews of IMDB, or sentences of SST-2. It is the first layer of
imdb-bert-tiny (width 128), trained for as many steps each time: "plain" on the labels, "distilled"
by the teacher on the same texts, "unlabelled" by the teacher on these mixed with 25,000 that have
no label (of SST-2, the first of the training split, whose labels are not read). "half" is every
second layer of the teacher, distilled on that mixture, and "half plain" on the labels alone. "all
labels" is the plain student with the teacher's own labels. Texts are cut at 128 tokens.

Prints a table: accuracy on the test split, and the share of the gap between "plain" and the teacher
that is closed. A run whose result is there is not run again. Nothing is chosen on the test split.
"""

import argparse
import json
import logging
import statistics
import warnings
from pathlib import Path

import lightning as L
from studies import bare_trainer

from lightning_compress.data import TextClassificationDataModule
from lightning_compress.distillation.objective import Losses
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.saving import save_compressed

SHARED = Path("../shared")
DATA = {
    "sst2": {"path": str(SHARED / "data/sst2"), "text": "sentence",
             "splits": {"train": "train.tsv", "unlabelled": "train.tsv", "test": "dev.tsv"}},
    "imdb": {"path": str(SHARED / "data/imdb"),
             "splits": {"train": "train.jsonl.gz", "unlabelled": "unsupervised.jsonl.gz",
                        "test": "test.jsonl.gz"}},
}  # fmt: skip
TEACHER_EPOCHS = {"sst2": 2, "imdb": 2}
STEPS = 500  # of 32 texts
FEW = {"sst2": 2000, "imdb": 2000}  # labels of the student
METHODS = ("plain", "distilled", "unlabelled", "half plain", "half", "all labels")
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ROOT = Path("logs/distillation_table")


def data_for(task, seed, *, labels=None, **options):
    limits = {"test": 10000 if task == "imdb" else 872}
    limits["unlabelled"] = 25000
    limits |= {"train": labels} if labels else {}
    tokenizer = str(SHARED / "models/imdb-bert-mini")
    return TextClassificationDataModule(
        **DATA[task], **options, limits=limits, tokenizer=tokenizer, seed=seed,
        validation_fraction=0.05,
    )  # fmt: skip


def tested(trainer, module, data):
    accuracy = trainer.test(module, datamodule=data, verbose=False)[0]["test_accuracy"]
    examples = len(data.examples("test"))
    return {"accuracy": 100 * accuracy, "examples": examples}


def teacher_of(task):
    """The folder of the teacher, and what it reaches; trained if it is not there."""
    folder, result = ROOT / f"{task}-teacher", ROOT / f"{task}-teacher.json"
    if not result.is_file():
        print(f"training {folder.name}", flush=True)
        L.seed_everything(0, verbose=False)
        data = data_for(task, 0)
        mini = str(SHARED / "models/imdb-bert-mini")
        module = FineTuningModule(pretrained=mini, config=STILL, learning_rate=2e-4)
        trainer = bare_trainer(ROOT, num_sanity_val_steps=0, max_epochs=TEACHER_EPOCHS[task])
        trainer.fit(module, datamodule=data)
        save_compressed(module.model, folder, data.tokenizer)
        found = {"validation": float(trainer.callback_metrics["val_accuracy"])}
        result.write_text(json.dumps({**found, **tested(trainer, module, data)}))
    return str(folder), json.loads(result.read_text())


def module_for(method, teacher):
    student = {"learning_rate": 3e-4, "config": STILL}
    if method.startswith("half"):
        student |= {"every_nth_layer": 2, "learning_rate": 1e-4}
        if method == "half plain":
            return DistillationModule(
                teacher=teacher, losses=Losses(soft_targets=None), teacher_cache="never", **student
            )
        return DistillationModule(teacher=teacher, teacher_cache="always", **student)
    student["pretrained"] = str(SHARED / "models/imdb-bert-tiny")
    student["config"] = {**STILL, "num_hidden_layers": 1}
    if method in ("plain", "all labels"):
        return FineTuningModule(**student)
    return DistillationModule(teacher=teacher, teacher_cache="always", **student)


def run(task, method, seed):
    path = ROOT / f"{task}-{method}-{STEPS}-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    teacher, _ = teacher_of(task)
    print(f"running {path.stem}", flush=True)
    L.seed_everything(seed, verbose=False)
    options = {"train_on": "both"} if method in ("unlabelled", "half") else {}
    options |= {} if method == "all labels" else {"labels": FEW[task]}
    data, module = data_for(task, seed, **options), module_for(method, teacher)
    trainer = bare_trainer(ROOT, num_sanity_val_steps=0, max_steps=STEPS, limit_val_batches=20)
    trainer.fit(module, datamodule=data)
    result = tested(trainer, module, data)
    path.write_text(json.dumps(result))
    return result


def table(task, methods, seeds):
    _, teacher = teacher_of(task)
    found = {method: [run(task, method, seed) for seed in seeds] for method in methods}
    best, examples = teacher["accuracy"], teacher["examples"]
    error = (best * (100 - best) / examples) ** 0.5
    print(f"\n{task}: accuracy in % on {examples} test examples; teacher {best:.2f}")
    print(f"standard error of one accuracy: {error:.2f} points\n")
    print("| method | seeds | accuracy | of the teacher's | gap closed |")
    print("| --- | --- | --- | --- | --- |")
    for method, results in found.items():
        values = [one["accuracy"] for one in results]
        mean, closed = statistics.mean(values), ""
        if "plain" in found and method in ("distilled", "unlabelled"):
            plain = statistics.mean(one["accuracy"] for one in found["plain"])
            closed = f"{(mean - plain) / (best - plain):.0%}"
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        print(f"| {method} | {len(values)} | {mean:.2f}{spread} | {mean / best:.1%} | {closed} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="imdb", choices=DATA)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    ROOT.mkdir(parents=True, exist_ok=True)
    table(arguments.task, arguments.methods, arguments.seeds)


if __name__ == "__main__":
    main()
