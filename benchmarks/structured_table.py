"""Structured pruning on real text: accuracy by remaining multiply-accumulates (MACs).

    python benchmarks/structured_table.py [--task sst2] [--seeds 0 1 2] [--levels .75 .5 .35 .25]
        [--methods fisher taught taylor activation magnitude random layers post-training]

Starts from the models that benchmarks/magnitude_table.py has fine-tuned. Each method reduces the
MACs to each level in three pruning steps in the first half of a short run and recovers in the rest.
"layers" removes the layers without which the predictions change least, which reaches the levels
only roughly; "post-training" does not train; "taught" is "fisher" with distillation from the
fine-tuned model. The baseline is the fine-tuned model trained for as many steps, for
"post-training" the fine-tuned model itself. Reviews are truncated to 128 tokens.

Prints a table and draws benchmarks/figures/structured_TASK.png. Existing results are reused.
Nothing is chosen on the test split.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from pathlib import Path

import lightning as L
from studies import bare_trainer, save_curves

from lightning_compress.callbacks import LayerPruning, PostTrainingPruning, StructuredPruning
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.evaluation.footprint import count_macs
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.pruning.importance import UNIT_SCORES

DATA = {
    "sst2": {"path": "../shared/data/sst2", "splits": {"train": "train.tsv", "test": "dev.tsv"},
             "text": "sentence", "max_length": 128},
    "imdb": {"path": "../shared/data/imdb",
             "splits": {"train": "train.jsonl.gz", "test": "test.jsonl.gz"}, "max_length": 128,
             "limits": {"train": 12000, "test": 4000}},
}  # fmt: skip
# Batches of 32 in a pruning run: long enough to recover, short enough for a CPU.
BATCHES = {"sst2": 150, "imdb": 50}
LAYERS = 4
OTHERS = ("taught", "layers", "post-training")
ROOT = Path("logs/structured_table")
FIGURES = Path("benchmarks/figures")


def callbacks_for(method, level):
    if method == "dense":
        return []
    if method == "layers":
        return [LayerPruning(removed_count=round(LAYERS * (1 - level)), warmup=0.0)]
    if method == "post-training":
        return [PostTrainingPruning(removed_macs_fraction=1 - level)]
    return [
        StructuredPruning(
            removed_macs_fraction=1 - level, pruning_steps=3, warmup=0.0, recovery=0.5,
            calibration_examples=256, score="fisher" if method == "taught" else method,
        )
    ]  # fmt: skip


def parts_of(task, method, seed):
    """The data and the module of a run; so short a run needs no dropout."""
    dense = fine_tuned(task, seed)
    L.seed_everything(seed, verbose=False)
    data = TextClassificationDataModule(
        **DATA[task], tokenizer=str(dense), seed=seed, validation_fraction=0.05, batch_size=32
    )
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    options = {"pretrained": str(dense), "config": still, "learning_rate": 2e-4}
    if method == "taught":
        return data, DistillationModule(teacher="dense", **options)
    return data, FineTuningModule(**options)


def trainer_for(batches, callbacks):
    return bare_trainer(
        ROOT,
        max_epochs=1 if batches else 0,
        limit_train_batches=batches or None,
        limit_val_batches=0,
        callbacks=callbacks,
    )


def fine_tuned(task, seed, encoder="mini"):
    """The folder of the dense model of a seed."""
    name, made_by = {
        "mini": (f"finetune_{task}", f"magnitude_table.py --tasks {task}"),
        "deep": (f"finetune_{task}-deep", "deep_encoder.py"),
    }[encoder]
    folder = Path(f"logs/{name}-seed{seed}/version_0/model")
    if not folder.is_dir():
        raise SystemExit(f"{folder} does not exist: first run python benchmarks/{made_by}")
    return folder


def run(task, method, level, seed, batches):
    """One run; gives accuracy, examples and the multiplications of a batch."""
    path = ROOT / f"{task}-{method}-{level}-{batches}-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    data, module = parts_of(task, method, seed)
    print(f"running {path.stem}", flush=True)
    trainer = trainer_for(batches, callbacks_for(method, level))
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    accuracy = trainer.test(module, datamodule=data, verbose=False)[0]["test_accuracy"]
    batches_of_test = list(data.test_dataloader())
    result = {
        "accuracy": 100 * accuracy,
        "macs": count_macs(module.model, batches_of_test[0]),
        "examples": sum(len(batch["labels"]) for batch in batches_of_test),
        "seconds": seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def table(task, methods, levels, seeds):
    lengths = {method: 0 if method == "post-training" else BATCHES[task] for method in methods}
    dense = {
        length: [run(task, "dense", 1, seed, length) for seed in seeds]
        for length in sorted({0, *lengths.values()})
    }
    means = {n: statistics.mean(one["accuracy"] for one in found) for n, found in dense.items()}
    examples = dense[0][0]["examples"]
    error = (means[0] * (100 - means[0]) / examples) ** 0.5
    print(f"\n{task}: accuracy in % on {examples} test examples, seeds {seeds}")
    print(f"standard error of one accuracy: {error:.2f} points")
    for length, mean in means.items():
        print(f"dense after {length} batches more: {mean:.2f}")
    print("\n| method | asked to keep | MACs kept | accuracy | to dense | minutes |")
    print("| --- | --- | --- | --- | --- | --- |")
    curves = {}
    for method, length in lengths.items():
        for level in levels:
            if method == "layers" and round(LAYERS * (1 - level)) / LAYERS != 1 - level:
                continue
            found = [run(task, method, level, seed, length) for seed in seeds]
            pairs = list(zip(found, dense[length], strict=True))
            kept = 100 * statistics.mean(one["macs"] / whole["macs"] for one, whole in pairs)
            gaps = [one["accuracy"] - whole["accuracy"] for one, whole in pairs]
            spread = f" ± {statistics.stdev(gaps):.2f}" if len(gaps) > 1 else ""
            accuracy = statistics.mean(one["accuracy"] for one in found)
            minutes = statistics.median(one["seconds"] for one in found) / 60
            curves.setdefault(method, [(100.0, means[length])]).append((kept, accuracy))
            print(
                f"| {method} | {level:.0%} | {kept:.1f} % | {accuracy:.2f} | "
                f"{statistics.mean(gaps):+.2f}{spread} | {minutes:.1f} |"
            )
    draw(task, curves, means[0], error)


def draw(task, curves, dense, error):
    def prepare(axes):
        band = "fine-tuned ± standard error"
        axes.axhspan(dense - error, dense + error, color="0.92", label=band)
        axes.set(xlabel="remaining MACs, %", ylabel="accuracy, %", title=task)

    save_curves(FIGURES / f"structured_{task}.png", curves, prepare)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="sst2", choices=DATA)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--levels", nargs="+", type=float, default=[0.75, 0.5, 0.35, 0.25])
    parser.add_argument("--methods", nargs="+", default=[*UNIT_SCORES, *OTHERS])
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    table(arguments.task, arguments.methods, arguments.levels, arguments.seeds)


if __name__ == "__main__":
    main()
