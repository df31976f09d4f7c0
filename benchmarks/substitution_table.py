"""Encoder-block substitution on real text: accuracy against the multiplications that remain.

    python benchmarks/substitution_table.py [--task sst2] [--seeds 0 1 2] [--methods default ...]

Starts from the models that benchmarks/magnitude_table.py has fine-tuned (4 layers, width 256), and
puts compact encoders in the place of some layers, in short runs of the same length for all, with
the dense model as teacher unless it says "alone". "default" is one narrow layer of a quarter of the
width in place of each of the two inner layers, sliced from them, matched, and then replacing them
batch by batch; the other rows differ from it in what they are called after. Beside it:

  layers      the same number of layers dropped, those that change the predictions least
  structured  heads and neurons removed until as many multiplications remain as in "default"
  thesis      as the bachelor thesis meant it: random start, depth 2, replaced at once, no teacher
  dense       nothing removed

Prints a table. A run whose result is there is not run again. Nothing is chosen on the test split.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from pathlib import Path

import lightning as L
from structured_table import DATA, fine_tuned, trainer_for

from lightning_compress.callbacks import (
    EncoderBlockSubstitution,
    LayerPruning,
    StructuredPruning,
)
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.evaluation.footprint import count_macs, count_parameters
from lightning_compress.modules import DistillationModule, FineTuningModule

BATCHES = {"sst2": 300, "imdb": 80}
TWO = {"groups": [[1], [2]]}
THESIS = {**TWO, "width": 48, "depth": 2, "start": "random", "match_steps": 0, "replacing": 0.0}
SUBSTITUTIONS = {
    "default": TWO,
    "one layer": {"groups": [[1]]},
    "three layers": {"groups": [[1], [2], [3]]},
    "one group of two": {"groups": [[1, 2]]},
    "width 1/6": {**TWO, "width": 1 / 6},
    "width 1/3": {**TWO, "width": 1 / 3},
    "start zero": {**TWO, "start": "zero"},
    "start components": {**TWO, "start": "components"},
    "start least squares": {**TWO, "start": "least_squares"},
    "not matched": {**TWO, "match_steps": 0},
    "at once": {**TWO, "replacing": 0.0},
    "alone": TWO,
    "thesis": THESIS,
}
METHODS = ("dense", *SUBSTITUTIONS, "layers", "structured")
ALONE = ("alone", "thesis")
ROOT = Path("logs/substitution_table")


def callbacks_for(method, kept):
    if method == "dense":
        return []
    if method == "layers":
        return [LayerPruning(count=2, warmup=0.0)]
    if method == "structured":
        return [StructuredPruning(macs=1 - kept, rounds=3, warmup=0.0, recovery=0.5)]
    return [EncoderBlockSubstitution(**SUBSTITUTIONS[method])]


def run(task, method, seed):
    path = ROOT / f"{task}-{method.replace('/', ':')}-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    kept = None
    if method == "structured":
        kept = run(task, "default", seed)["macs"] / run(task, "dense", seed)["macs"]
    print(f"running {path.stem}", flush=True)
    L.seed_everything(seed, verbose=False)
    dense = str(fine_tuned(task, seed))
    data = TextClassificationDataModule(
        **DATA[task], tokenizer=dense, seed=seed, validation_fraction=0.05, batch_size=32
    )
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    options = {"pretrained": dense, "config": still, "learning_rate": 2e-4}
    module = (
        FineTuningModule(**options)
        if method in ALONE
        else DistillationModule(teacher="dense", **options)
    )
    trainer = trainer_for(BATCHES[task], callbacks_for(method, kept))
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    accuracy = trainer.test(module, datamodule=data, verbose=False)[0]["test_accuracy"]
    batches = list(data.test_dataloader())
    result = {
        "accuracy": 100 * accuracy,
        "macs": count_macs(module.model, batches[0]),
        "parameters": count_parameters(module.model)[0],
        "examples": len(data.examples("test")),
        "seconds": seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def table(task, methods, seeds):
    dense = [run(task, "dense", seed) for seed in seeds]
    mean, examples = statistics.mean(one["accuracy"] for one in dense), dense[0]["examples"]
    error = (mean * (100 - mean) / examples) ** 0.5
    print(f"\n{task}: accuracy in % on {examples} test examples, seeds {seeds}")
    print(f"standard error of one accuracy: {error:.2f} points\n")
    print("| method | MACs kept | parameters kept | accuracy | to dense | of dense | minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for method in methods:
        found = [run(task, method, seed) for seed in seeds]
        kept = [
            100
            * statistics.mean(
                one[what] / whole[what] for one, whole in zip(found, dense, strict=True)
            )
            for what in ("macs", "parameters")
        ]
        gaps = [
            one["accuracy"] - whole["accuracy"] for one, whole in zip(found, dense, strict=True)
        ]
        spread = f" ± {statistics.stdev(gaps):.2f}" if len(gaps) > 1 else ""
        accuracy = statistics.mean(one["accuracy"] for one in found)
        minutes = statistics.median(one["seconds"] for one in found) / 60
        print(
            f"| {method} | {kept[0]:.1f} % | {kept[1]:.1f} % | {accuracy:.2f} | "
            f"{statistics.mean(gaps):+.2f}{spread} | {accuracy / mean:.1%} | {minutes:.1f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="sst2", choices=BATCHES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    table(arguments.task, arguments.methods, arguments.seeds)


if __name__ == "__main__":
    main()
