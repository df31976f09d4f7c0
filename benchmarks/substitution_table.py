"""Encoder-block substitution on real text: accuracy against the MACs kept.

    python benchmarks/substitution_table.py [--encoder mini] [--task sst2] [--seeds 0 1 2]
        [--replaced 1 2 3] [--rows methods]

Starts from fine-tuned models: "mini" (4 layers, width 256) from benchmarks/magnitude_table.py,
"deep" (12 layers, width 128) from benchmarks/deep_encoder.py. Every method trains for the same
number of batches with the fine-tuned model as teacher, except where noted, and is tested on all
SST-2 test sentences or on 10,000 IMDb reviews, truncated to 128 tokens. "substituted" replaces each
of the chosen layers by one compact layer of a quarter of the width, which is initialized by slicing
the layer, distilled to reproduce its output, and used in a growing fraction of the batches. The
baselines:

  skipped     the same layers removed without replacement
  layers      the layers removed that change the predictions least; their number is the one whose
              MACs come nearest to those of "substituted"
  theseus     the number of layers kept in "layers", each of them the replacement of a group of
              neighbouring layers (BERT-of-Theseus)
  structured  heads and neurons removed down to the MACs of "substituted"
  thesis      the design of the bachelor thesis: two layers of a sixth of the width, random
              initialization, replacement at once, no teacher

``--rows variants`` compares variants of "substituted", each named after the option that differs.
``--rows longer`` trains "skipped" on four times as many batches, about as long as all phases of
"substituted" take. Speed is the latency of the dense model divided by that of the compressed model,
on 8 texts of 128 tokens, timed alternately in one process. Prints a table and draws
benchmarks/figures/substitution_ENCODER_TASK.png for the methods. Finished runs are not repeated.
Nothing is chosen on the test split.
"""

import argparse
import copy
import json
import logging
import statistics
import time
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from structured_table import DATA, fine_tuned, trainer_for
from studies import save_curves
from torch import nn

from lightning_compress import load_compressed, remove_layers_
from lightning_compress.callbacks import (
    EncoderBlockSubstitution,
    LayerPruning,
    StructuredPruning,
)
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.evaluation.footprint import count_macs, count_parameters
from lightning_compress.evaluation.latency import interleaved_times
from lightning_compress.models import manifest_of, structure_of
from lightning_compress.models.layers import replace_layers_
from lightning_compress.models.switch import ReplacementSwitch
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.substitution.edit import (
    finalize_substitution_,
    replacement_probability,
    sample_switches_,
    switches_of,
)

LAYERS = {"mini": 4, "deep": 12}
REPLACED = {"mini": (1, 2, 3), "deep": (3, 6, 7, 9)}  # 25, 50, 60 and 75 %
HALF = {"mini": 2, "deep": 6}
BATCHES = {"sst2": 300, "imdb": 80}
LIMITS = {"sst2": {}, "imdb": {"train": 12000, "test": 10000}}
LONGER = 4
METHODS = ("substituted", "skipped", "layers", "theseus", "structured", "thesis")
THESIS = {
    "width_fraction": 1 / 6, "depth": 2, "initialization": "random", "distil_steps": 0,
    "replacement_fraction": 0.0,
}  # fmt: skip
VARIANTS = {
    "groups of two": {"layers_per_group": 2},
    "groups of three": {"layers_per_group": 3},
    "width 1/6": {"width_fraction": 1 / 6},
    "width 1/3": {"width_fraction": 1 / 3},
    "random initialization": {"initialization": "random"},
    "zero initialization": {"initialization": "zero"},
    "components": {"initialization": "components"},
    "least squares": {"initialization": "least_squares"},
    "no block distillation": {"distil_steps": 0},
    "at once": {"replacement_fraction": 0.0},
    "evenly spread": {"selection": "even"},
    "no teacher": {},
}
ALONE = ("no teacher", "thesis", "dense alone")
ROOT = Path("logs/substitution_table")
FIGURES = Path("benchmarks/figures")


class Skipped(L.Callback):
    """Removes layers before the first step."""

    def __init__(self, layers):
        self.layers = layers

    def on_fit_start(self, trainer, pl_module):
        remove_layers_(pl_module.model, self.layers)


class Theseus(L.Callback):
    """Replaces groups of neighbouring layers by one layer each in the first half of the run."""

    def __init__(self, left, steps):
        self.left, self.final_step, self.step = left, steps // 2, 0

    def on_fit_start(self, trainer, pl_module):
        model = pl_module.model
        layers = [model.get_submodule(name) for name in structure_of(model).layers]
        staged = []
        for numbers in np.array_split(range(len(layers)), self.left):
            group = [layers[number] for number in numbers]
            switch = ReplacementSwitch(nn.ModuleList(group), copy.deepcopy(group[0]))
            staged.append(switch if group[1:] else group[0])
        replace_layers_(model, staged)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.step == self.final_step:
            finalize_substitution_(pl_module.model)
        sample_switches_(
            switches_of(pl_module.model),
            replacement_probability(self.step, final_step=self.final_step, initial=0.3),
            f"theseus-{batch_idx}",
        )
        self.step += 1


def substitution(encoder, replaced, method):
    options = {"num_groups": replaced, "keep_ends": replaced <= LAYERS[encoder] - 2}
    options |= THESIS if method == "thesis" else VARIANTS.get(method, {})
    options["num_groups"] //= options.get("layers_per_group", 1)
    return EncoderBlockSubstitution(**options)


def module_for(encoder, task, method, seed):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    dense = str(fine_tuned(task, seed, encoder))
    options = {"pretrained": dense, "config": still, "learning_rate": 2e-4}
    if method in ALONE:
        return FineTuningModule(**options)
    return DistillationModule(teacher="dense", **options)


def callbacks_for(encoder, task, replaced, method, seed):
    if method.startswith("dense"):
        return []
    if method not in (*METHODS[1:5], "skipped longer"):
        return [substitution(encoder, replaced, method)]
    substituted = run(encoder, task, replaced, "substituted", seed)
    kept = substituted["macs"] / run(encoder, task, 0, "dense", seed)["macs"]
    dropped = round(LAYERS[encoder] * (1 - kept))
    if method.startswith("skipped"):
        return [Skipped([layer for group in substituted["groups"] for layer in group])]
    if method == "theseus":
        return [Theseus(LAYERS[encoder] - dropped, BATCHES[task])]
    if method == "structured":
        return [
            StructuredPruning(
                removed_macs_fraction=1 - kept, pruning_steps=3, warmup=0.0, recovery=0.5
            )
        ]
    return [LayerPruning(removed_count=dropped, warmup=0.0)]


@torch.inference_mode()
def speed_of(model, dense):
    """Speed-up over the dense model, and throughput in texts per second."""
    batch = {"input_ids": torch.randint(1000, 30000, (8, 128))}
    calls = [[lambda one=one: one(**batch)] for one in (dense.eval(), model.eval())]
    before, after = interleaved_times(calls, seconds=8.0)
    return float((before / after).median()), 8 / float(after.median())


def run(encoder, task, replaced, method, seed):
    path = ROOT / f"{encoder}-{task}-{replaced}-{method.replace('/', ':')}-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    L.seed_everything(seed, verbose=False)
    dense = fine_tuned(task, seed, encoder)
    data = TextClassificationDataModule(
        **DATA[task] | {"limits": LIMITS[task]},
        tokenizer=str(dense), seed=seed, validation_fraction=0.05, batch_size=32,
    )  # fmt: skip
    module = module_for(encoder, task, method, seed)
    callbacks = callbacks_for(encoder, task, replaced, method, seed)
    print(f"running {path.stem}", flush=True)
    longer = LONGER if method == "skipped longer" else 1
    trainer = trainer_for(longer * BATCHES[task], callbacks)
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    accuracy = trainer.test(module, datamodule=data, verbose=False)[0]["test_accuracy"]
    speed, rate = speed_of(module.model, load_compressed(dense))
    blocks = [module.model.get_submodule(name) for name in structure_of(module.model).layers]
    edits = [edit for edit in manifest_of(module.model) if "groups" in edit]
    result = {
        "accuracy": 100 * accuracy,
        "macs": count_macs(module.model, next(iter(data.test_dataloader()))),
        "parameters": count_parameters(module.model)[0],
        "block_parameters": sum(count_parameters(block)[0] for block in blocks),
        "speed": speed,
        "texts_per_second": rate,
        "groups": [group for edit in edits for group in edit["groups"]],
        "examples": len(data.examples("test")),
        "seconds": seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def kept_percentage(results, dense, quantity):
    """Mean percentage of a quantity that is kept."""
    return 100 * statistics.mean(
        a[quantity] / b[quantity] for a, b in zip(results, dense, strict=True)
    )


def table(encoder, task, replaced, methods, seeds):
    dense = [run(encoder, task, 0, "dense", seed) for seed in seeds]
    alone = [run(encoder, task, 0, "dense alone", seed) for seed in seeds]
    mean, examples = statistics.mean(one["accuracy"] for one in dense), dense[0]["examples"]
    error = (mean * (100 - mean) / examples) ** 0.5
    print(f"\n{encoder}, {task}: accuracy in % on {examples} test examples, seeds {seeds}")
    print(f"standard error of one accuracy: {error:.2f} points")
    print(f"dense after {BATCHES[task]} more batches of self-distillation: {mean:.2f}")
    print(f"  of fine-tuning: {statistics.mean(one['accuracy'] for one in alone):.2f}\n")
    print(
        "| layers replaced | method | MACs kept | parameters kept | of the blocks | speed | "
        "accuracy | to dense | of dense | minutes |"
    )
    print("| --- |" + " --- |" * 9)
    curves = {}
    for count in replaced:
        for method in methods:
            found = [run(encoder, task, count, method, seed) for seed in seeds]
            kept = [
                kept_percentage(found, dense, quantity)
                for quantity in ("macs", "parameters", "block_parameters")
            ]
            gaps = [a["accuracy"] - b["accuracy"] for a, b in zip(found, dense, strict=True)]
            spread = f" ± {statistics.stdev(gaps):.2f}" if len(gaps) > 1 else ""
            accuracy = statistics.mean(one["accuracy"] for one in found)
            minutes = statistics.median(one["seconds"] for one in found) / 60
            speed = statistics.median(one["speed"] for one in found)
            print(
                f"| {count} of {LAYERS[encoder]} | {method} | "
                + "".join(f"{one:.1f} % | " for one in kept)
                + f"{speed:.2f} | {accuracy:.2f} | {statistics.mean(gaps):+.2f}{spread} | "
                f"{accuracy / mean:.1%} | {minutes:.1f} |",
                flush=True,
            )
            curves.setdefault(method, []).append((kept[0], accuracy))
    return curves, mean, error


def draw(encoder, task, curves, dense, error):
    def prepare(axes):
        axes.axhspan(dense - error, dense + error, color="0.92", label="dense ± standard error")
        axes.set(xlabel="MACs kept, %", ylabel="accuracy, %")
        axes.set_title(f"{encoder}, {task}")

    save_curves(FIGURES / f"substitution_{encoder}_{task}.png", curves, prepare)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="mini", choices=LAYERS)
    parser.add_argument("--task", default="sst2", choices=BATCHES)
    parser.add_argument("--replaced", nargs="+", type=int, help="numbers of layers to replace")
    parser.add_argument("--rows", default="methods", choices=("methods", "variants", "longer"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    encoder, task, seeds = arguments.encoder, arguments.task, arguments.seeds
    if arguments.rows == "variants":
        half = HALF[encoder]
        rows = [
            "substituted",
            *(
                name
                for name, options in VARIANTS.items()
                if options.get("layers_per_group", 1) <= half
            ),
        ]
        table(encoder, task, arguments.replaced or [half], rows, seeds)
        return
    replaced = arguments.replaced or REPLACED[encoder]
    if arguments.rows == "longer":
        table(encoder, task, replaced, ("substituted", "skipped", "skipped longer"), seeds)
        return
    curves, dense, error = table(encoder, task, replaced, METHODS, seeds)
    draw(encoder, task, curves, dense, error)


if __name__ == "__main__":
    main()
