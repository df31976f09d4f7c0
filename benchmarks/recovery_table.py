"""How much of the loss of int4 weights quantization-aware training recovers.

    python benchmarks/recovery_table.py [--task gpt2] [--seeds 0 1 2]

Starts from the models of benchmarks/quantization_table.py and quantizes their weights to int4 in
coarse groups (a whole row of the narrow layers), which lose more accuracy than the default groups
of 32: post-training, and in a short quantization-aware training whose only loss is the distillation
from the float model, which is therefore the upper limit.

Prints the metric on the whole test split and the fraction of the loss that training recovers, as
a mean over the seeds; the fraction is unreliable where the loss is within its standard deviation.
Finished runs are not repeated. Nothing is chosen on the test split.
"""

import argparse
import json
import logging
import statistics
import warnings
from pathlib import Path

import lightning as L
from quantization_table import parts_of
from studies import bare_trainer

from lightning_compress import load_compressed, quantize_, save_compressed
from lightning_compress.distillation.objective import Losses
from lightning_compress.modules import FineTuningModule, QATModule
from lightning_compress.quantization import QuantizationConfig

GROUP_SIZE = {"sst2": 256, "imdb": 256, "gpt2": 128}
BATCHES = {"sst2": 150, "imdb": 40, "gpt2": 100}
RATE = {"sst2": 1e-4, "imdb": 1e-4, "gpt2": 3e-4}
METHODS = ("float", "after training", "in training")
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ROOT = Path("logs/recovery_table")


def trainer_for(batches):
    return bare_trainer(
        ROOT, max_epochs=1 if batches else 0, limit_train_batches=batches, limit_val_batches=0
    )


def module_for(task, method, folder, seed):
    config = QuantizationConfig("int4-weight", group_size=GROUP_SIZE[task])
    options = {"task": "causal-lm" if task == "gpt2" else "sequence-classification"}
    if method == "in training":
        return QATModule(
            pretrained=str(folder), quantization=config, teacher="dense",
            losses=Losses(task=None),
            config=None if task == "gpt2" else STILL, learning_rate=RATE[task], **options,
        )  # fmt: skip
    if method == "after training":
        model = load_compressed(folder)
        quantize_(model, config)
        folder = save_compressed(model, ROOT / f"{task}-seed{seed}")
    return FineTuningModule(pretrained=str(folder), **options)


def run(task, method, seed):
    """The test metric of one method: perplexity, or accuracy in %."""
    path = ROOT / f"{task}-{method}-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    print(f"running {path.stem}", flush=True)
    L.seed_everything(seed, verbose=False)
    folder, data = parts_of(task, seed)
    module = module_for(task, method, folder, seed)
    trainer = trainer_for(BATCHES[task] if method == "in training" else 0)
    if method == "in training":
        trainer.fit(module, datamodule=data)
    found = trainer.test(module, datamodule=data, verbose=False)[0]
    value = found["test_perplexity"] if task == "gpt2" else 100 * found["test_accuracy"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="gpt2", choices=GROUP_SIZE)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    task, seeds = arguments.task, arguments.seeds
    found = {method: [run(task, method, seed) for seed in seeds] for method in METHODS}
    metric = "perplexity" if task == "gpt2" else "accuracy, %"
    print(f"\n{task}, int4 weights in groups of {GROUP_SIZE[task]}, seeds {seeds}\n")
    print(f"| quantized | {metric} | to float |")
    print("| --- | --- | --- |")
    losses = {}
    for method, values in found.items():
        gaps = [value - reference for value, reference in zip(values, found["float"], strict=True)]
        losses[method] = statistics.mean(gaps)
        spread = f" ± {statistics.stdev(gaps):.2f}" if len(gaps) > 1 else ""
        print(f"| {method} | {statistics.mean(values):.2f} | {losses[method]:+.2f}{spread} |")
    if losses["after training"]:
        print(f"\nrecovered: {1 - losses['in training'] / losses['after training']:.0%}")


if __name__ == "__main__":
    main()
