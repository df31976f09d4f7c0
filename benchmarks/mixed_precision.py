"""Fewer bits at inference without quantizing: what each way changes in accuracy and in speed.

    OMP_NUM_THREADS=2 python benchmarks/mixed_precision.py [--devices cpu] [--seeds 0 1 2]
        [--seconds 5]

On every device: float32; TF32, which is float32 whose products keep 10 bits (NVIDIA's GPUs only);
bf16 and fp16 under autocast, where weights and what needs the range stay float32; and the whole
model cast to bf16 and fp16.

Accuracy is that of the models which benchmarks/magnitude_table.py has fine-tuned, on all test
sentences of SST-2, with the mean difference to float32 and its spread over the seeds, the share of
equal predictions and the largest difference of logits. Speed is over eager float32, timed in turn
in one process on 8 texts of 128 tokens: of that model, 256 wide, and of a BERT of base width with 4
layers and random weights, eager and compiled. Prints a table and draws
benchmarks/figures/mixed_precision.png.
"""

import argparse
import contextlib
import copy
import statistics
import warnings

import torch
from matplotlib.figure import Figure
from structured_table import DATA, FIGURES, fine_tuned
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress import load_compressed
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.evaluation.latency import interleaved_times
from lightning_compress.evaluation.runtimes.eager import torch_devices
from lightning_compress.models.forward import model_inputs, synchronize

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WAYS = ("fp32", "tf32", "bf16 autocast", "fp16 autocast", "bf16", "fp16")
TEXTS, TOKENS = 8, 128


@contextlib.contextmanager
def arithmetic(way, device):
    """The context that a way runs in."""
    kind, _, under = way.partition(" ")
    with contextlib.ExitStack() as stack:
        if under:
            stack.enter_context(torch.autocast(torch.device(device).type, TYPES[kind]))
        if way == "tf32":
            before = torch.backends.cuda.matmul.allow_tf32
            stack.callback(setattr, torch.backends.cuda.matmul, "allow_tf32", before)
            torch.backends.cuda.matmul.allow_tf32 = True
        yield


def prepared(model, way, device):
    return copy.deepcopy(model).to(device=device, dtype=TYPES.get(way, torch.float32)).eval()


def ways_on(device):
    return [way for way in WAYS if way != "tf32" or device.startswith("cuda")]


@torch.inference_mode()
def logits_of(model, way, device, batches):
    cast = prepared(model, way, device)
    with arithmetic(way, device):
        found = [
            cast(**{n: v.to(device) for n, v in model_inputs(cast, batch).items()}).logits
            for batch in batches
        ]
    return torch.cat(found).float().cpu()


def accuracies(device, seeds):
    """By way, for each seed: accuracy in %, share of equal predictions, largest difference."""
    found = {way: [] for way in ways_on(device)}
    for seed in seeds:
        folder = fine_tuned("sst2", seed)
        data = TextClassificationDataModule(**DATA["sst2"], tokenizer=str(folder))
        data.setup("test")
        batches, model = list(data.test_dataloader()), load_compressed(folder)
        labels = torch.cat([batch["labels"] for batch in batches])
        whole = logits_of(model, "fp32", device, batches)
        for way, rows in found.items():
            logits = logits_of(model, way, device, batches)
            right, same = (logits.argmax(-1) == other for other in (labels, whole.argmax(-1)))
            largest = float((logits - whole).abs().max())
            rows.append((100 * float(right.float().mean()), float(same.float().mean()), largest))
    return found, len(labels)


def speeds(device, seconds):
    """Over eager float32, by way and then by model and how it runs: quartiles."""
    torch.manual_seed(0)
    models = {
        "256 wide": load_compressed(fine_tuned("sst2", 0)),
        "768 wide": BertForSequenceClassification(BertConfig(num_hidden_layers=4)),
    }
    batch = {"input_ids": torch.randint(1000, 30000, (TEXTS, TOKENS), device=device)}
    found = {way: {} for way in ways_on(device)}
    for name, model in models.items():
        calls = {}
        for way in found:
            cast = prepared(model, way, device)
            calls[way, f"{name}, eager"] = call_of(cast, way, device, batch)
            compiled = torch.compile(cast, dynamic=True)
            calls[way, f"{name}, compiled"] = call_of(compiled, way, device, batch)
        with torch.inference_mode():
            times = interleaved_times([[call] for call in calls.values()], seconds=seconds)
        for (way, column), taken in zip(calls, times, strict=True):
            ratios = (times[0] / taken).flatten()
            found[way][column] = ratios.quantile(ratios.new_tensor([0.25, 0.5, 0.75])).tolist()
    return found


def call_of(model, way, device, batch):
    def call():
        with arithmetic(way, device):
            model(**batch)
        synchronize(torch.device(device))

    return call


def table(device, seeds, seconds):
    """Print the table of a device; gives its accuracies and speeds."""
    quality, examples = accuracies(device, seeds)
    fast = speeds(device, seconds)
    base = [row[0] for row in quality["fp32"]]
    error = (statistics.mean(base) * (100 - statistics.mean(base)) / examples) ** 0.5
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    print(
        f"\n{name}, {torch.get_num_threads()} threads; accuracy in % on {examples} test sentences, "
        f"seeds {seeds}, standard error {error:.2f} points; speed over eager fp32, with quartiles\n"
    )
    columns = list(fast["fp32"])
    print(f"| | accuracy | to fp32 | equal | largest difference | {' | '.join(columns)} |")
    print("| --- |" + " --- |" * (4 + len(columns)))
    for way, rows in quality.items():
        gaps = [row[0] - one for row, one in zip(rows, base, strict=True)]
        spread = f" ± {statistics.stdev(gaps):.2f}" if len(gaps) > 1 else ""
        cells = [
            f"{statistics.mean(row[0] for row in rows):.2f}",
            f"{statistics.mean(gaps):+.2f}{spread}",
            f"{statistics.mean(row[1] for row in rows):.2%}",
            f"{max(row[2] for row in rows):.2g}",
            *(f"{mid:.2f} ({low:.2f} to {high:.2f})" for low, mid, high in fast[way].values()),
        ]
        print(f"| {way} | {' | '.join(cells)} |", flush=True)
    return {way: statistics.mean(row[0] for row in rows) for way, rows in quality.items()}, fast


def draw(found):
    """For each device the speeds as bars, the accuracies beside the ways."""
    figure = Figure(figsize=(9.5, 4.2 * len(found)), layout="constrained")
    for axes, (device, (quality, fast)) in zip(
        figure.subplots(len(found), squeeze=False)[:, 0], found.items(), strict=True
    ):
        columns = list(fast["fp32"])
        for number, column in enumerate(columns):
            low, middle, high = zip(*(fast[way][column] for way in fast), strict=True)
            places = [row + (number - (len(columns) - 1) / 2) * 0.2 for row in range(len(fast))]
            spread = [
                [m - a for m, a in zip(middle, low, strict=True)],
                [b - m for m, b in zip(middle, high, strict=True)],
            ]
            axes.barh(places, middle, height=0.18, xerr=spread, label=column, error_kw={"lw": 0.8})
        labels = [f"{way}\n{quality[way]:.2f} %" for way in fast]
        axes.set_yticks(range(len(fast)), labels)
        axes.invert_yaxis()
        axes.axvline(1, color="0.5", lw=0.8)
        axes.set(xlabel="times as fast as eager fp32", title=f"{device}: speed, and accuracy")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    path = FIGURES / "mixed_precision.png"
    figure.savefig(path, dpi=100)
    print(f"\nfigure: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", nargs="+", default=torch_devices())
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each way")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    # All models of one class share one function and its few places for compilations.
    torch._dynamo.config.recompile_limit = 64
    draw(
        {device: table(device, arguments.seeds, arguments.seconds) for device in arguments.devices}
    )


if __name__ == "__main__":
    main()
