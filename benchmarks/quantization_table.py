"""Post-training quantization on real text: accuracy and size of each scheme.

    python benchmarks/quantization_table.py [--task sst2] [--seeds 0 1 2]

Starts from the models that benchmarks/magnitude_table.py has fine-tuned ("sst2", "imdb") or that
benchmarks/perplexity_table.py has trained ("gpt2"). Each is quantized, saved, loaded and tested on
the whole test split that these use. Scales are calibrated on 512 training examples.

Prints a table: the metric and, in brackets, the mean difference to float32 with its spread over the
seeds; and the bytes on disk, without the tokenizer, as a fraction of float32's.
"""

import argparse
import itertools
import logging
import statistics
import tempfile
import warnings
from pathlib import Path

import lightning as L
from perplexity_table import parts_of as language_data
from perplexity_table import start_of as language_model
from structured_table import DATA, fine_tuned
from studies import bare_trainer

from lightning_compress import load_compressed, quantize_, save_compressed
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.modules import FineTuningModule
from lightning_compress.quantization import QuantizationConfig

SCHEMES = {
    "fp32": None,
    "bf16": {},
    "fp16": {},
    "int8-weight": {},
    "int4-weight": {},
    "int8-dynamic": {},
    "int8-static, minmax": {"observer": "minmax"},
    "int8-static, percentile": {"observer": "percentile"},
    "int8-static, mse": {"observer": "mse"},
    "int8-static, smoothed": {"observer": "mse", "smooth_alpha": 0.5},
    "int8-static, symmetric": {"observer": "mse", "symmetric": True},
}
EXAMPLES = 512


def parts_of(task, seed):
    """The folder of the dense model, and data."""
    if task == "gpt2":
        return language_model(task, seed), language_data(task, seed)[0]
    folder = fine_tuned(task, seed)
    return folder, TextClassificationDataModule(
        **DATA[task], tokenizer=str(folder), seed=seed, validation_fraction=0.05, batch_size=32
    )


def calibration_of(data):
    """Batches of so many training examples; the data are set up."""
    batches = data.train_dataloader()
    return list(itertools.islice(batches, EXAMPLES // data.batch_size))


def measured(task, seed, calibration_batches, folder, data, name, saved):
    """The metric and the bytes of one scheme."""
    model = load_compressed(folder)
    if SCHEMES[name] is not None:
        config = QuantizationConfig(name.split(",")[0], **SCHEMES[name])
        quantize_(model, config, calibration_batches=calibration_batches)
    size = sum(file.stat().st_size for file in save_compressed(model, saved).iterdir())
    task_name = "causal-lm" if task == "gpt2" else "sequence-classification"
    module = FineTuningModule(pretrained=str(saved), task=task_name)
    found = bare_trainer(saved).test(module, datamodule=data, verbose=False)[0]
    if task == "gpt2":
        return found["test_perplexity"], size
    return 100 * found["test_accuracy"], size


def one_seed(task, seed):
    L.seed_everything(seed, verbose=False)
    folder, data = parts_of(task, seed)
    data.prepare_data()
    data.setup("fit")
    calibration_batches = calibration_of(data)
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "model"
        return {
            name: measured(task, seed, calibration_batches, folder, data, name, saved)
            for name in SCHEMES
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="sst2", choices=("sst2", "imdb", "gpt2"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    found = [one_seed(arguments.task, seed) for seed in arguments.seeds]
    metric = "perplexity" if arguments.task == "gpt2" else "accuracy, %"
    print(f"\n{arguments.task}, seeds {arguments.seeds}\n")
    print(f"| scheme | {metric} | to fp32 | bytes of fp32 |")
    print("| --- | --- | --- | --- |")
    for name in SCHEMES:
        values, sizes = zip(*(one[name] for one in found), strict=True)
        gaps = [one[name][0] - one["fp32"][0] for one in found]
        if arguments.task == "gpt2":
            gaps = [100 * gap / one["fp32"][0] for gap, one in zip(gaps, found, strict=True)]
        spread = f" ± {statistics.stdev(gaps):.2f}" if len(gaps) > 1 else ""
        unit = " %" if arguments.task == "gpt2" else ""
        share = statistics.mean(
            size / one["fp32"][1] for size, one in zip(sizes, found, strict=True)
        )
        gap = f"{statistics.mean(gaps):+.2f}{spread}{unit}"
        print(f"| {name} | {statistics.mean(values):.2f} | {gap} | {share:.1%} |")


if __name__ == "__main__":
    main()
