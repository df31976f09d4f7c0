"""Ways to feed a model in training: examples a second end to end, and the advice they lead to.

    OMP_NUM_THREADS=2 python benchmarks/data_loading.py [--tasks sst2 imdb] [--rounds 5]
        [--device cpu]

Each way differs in one thing from how lightning_compress loads by itself: tokens made once and kept
on disk, batches of 32 of like length padded to their longest, in the training process. A pass
trains a BERT of 4 layers, 256 wide, on so many examples; and one loads them alone, with no model.
All ways take their passes in turn within one process, in rounds. Prints examples a second, in the
median over the rounds, and the ratio to the way of the same group that it is to be compared with;
then what follows from it; another batch size also changes what is learned, which this does not
look at. Draws benchmarks/figures/data_loading.png.
"""

import argparse
import os
import statistics
import time
import warnings

import numpy as np
import torch
from matplotlib.figure import Figure
from structured_table import DATA, FIGURES
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress.data import TextClassificationDataModule
from lightning_compress.data.dataloader import LengthBucketedBatches, ResumableLoader
from lightning_compress.models.forward import model_inputs
from lightning_compress.progress import progress_bar

WORTH = 1.1  # times as fast; less is not worth another option
EXAMPLES = {"sst2": 512, "imdb": 192}
TOKENIZER = "../shared/models/imdb-bert-mini"
ITSELF = {"stored": True, "padding": "bucketed", "workers": 0, "ahead": None, "size": 32,
          "pinned": False}  # fmt: skip
LOOSE = {"padding": "not bucketed"}  # lengths are not known before the tokens are
# By group: what to compare with, and what is compared.
GROUPS = {
    "tokens": ("kept on disk", LOOSE, {
        "on the fly": {"stored": False} | LOOSE,
        "on the fly, 2 workers": {"stored": False, "workers": 2} | LOOSE,
    }),
    "padding": ("bucketed, to the longest", {}, {
        "in random order, to the longest": LOOSE,
        "to the maximum": {"padding": "maximum"},
    }),
    "workers": ("none", {}, {
        "2 workers": {"workers": 2},
        "2 workers, 8 batches ahead": {"workers": 2, "ahead": 8},
    }),
    "batch size": ("32", {}, {
        "8": {"size": 8}, "128": {"size": 128},
    }),
}  # fmt: skip
PINNED = ("pageable memory", {}, {"pinned memory": {"pinned": True}})


class OnTheFly(Dataset):
    """Batches whose texts are tokenized when they are asked for."""

    def __init__(self, texts, labels, tokenizer, max_length):
        self.texts, self.labels = texts, labels
        self.tokenizer, self.max_length = tokenizer, max_length

    def __getitem__(self, request):
        batch = self.tokenizer(
            [self.texts[index] for index in request.indices],
            truncation=True,
            max_length=self.max_length,
            padding=True,
            pad_to_multiple_of=8,
            return_tensors="pt",
        )
        return {**batch, "labels": self.labels[request.indices]}


def data_of(task, examples):
    data = TextClassificationDataModule(
        **DATA[task] | {"limits": {"train": examples, "test": 1}},
        tokenizer=TOKENIZER, validation_fraction=0.01,
    )  # fmt: skip
    data.setup("fit")
    return data


def one_at_a_time(worker):
    """In a forked process the tokenizer's own threads wait for ones that are not there."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def loader_of(task, examples, way):
    """A loader, and how many examples it gives."""
    options = ITSELF | way
    data = data_of(task, examples)
    batches = data.examples("train")
    if options["padding"] == "maximum":
        batches.padded = np.full_like(batches.padded, data.max_length)
    order = LengthBucketedBatches(
        batches.padded,
        batch_size=options["size"],
        training=True,
        bucketed=options["padding"] == "bucketed",
    )
    if not options["stored"]:
        rows = batches.sequences.rows
        texts = data.sources["train"].read(data.columns, limit=examples).column(data.columns[0])
        labels = torch.as_tensor(data._labels["train"][rows])
        texts = texts.take(rows).to_pylist()
        batches = OnTheFly(texts, labels, data.tokenizer, data.max_length)
    loader = ResumableLoader(
        batches,
        order=order,
        num_workers=options["workers"],
        prefetch_factor=options["ahead"],
        persistent_workers=options["workers"] > 0,
        pin_memory=options["pinned"],
        worker_init_fn=one_at_a_time,
    )
    return loader, len(order.lengths)


def passes(loader, model, optimizer, device):
    """Seconds of loading alone, and of training."""
    start = time.perf_counter()
    for _ in loader:
        pass
    alone = time.perf_counter() - start
    start = time.perf_counter()
    for batch in loader:
        inputs = {
            name: value.to(device, non_blocking=True)
            for name, value in model_inputs(model, batch).items()
        }
        labels = batch["labels"].to(device, non_blocking=True)
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return alone, time.perf_counter() - start


def measured(task, groups, examples, rounds, device):
    """By group and way: seconds an example of loading alone and of training, for each round."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=1024,
    )  # fmt: skip
    model = BertForSequenceClassification(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ways = {
        (group, name): way
        for group, (usual, base, others) in groups.items()
        for name, way in {usual: base, **others}.items()
    }
    loaders = {key: loader_of(task, examples, way) for key, way in ways.items()}
    found = {key: [] for key in ways}
    with progress_bar((rounds + 1) * len(loaders), shown=True) as advance:
        for number in range(rounds + 1):  # the first starts the workers and warms up
            for key, (loader, count) in loaders.items():
                alone, whole = passes(loader, model, optimizer, device)
                if number:
                    found[key].append((alone / count, whole / count))
                advance(task, 1)
    return found


def quartiles(ratios):
    """Median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def compared(found, groups):
    """For each way: median rates, and quartiles of the ratio to its group's usual."""
    rows = {}
    for (group, name), times in found.items():
        usual = found[group, groups[group][0]]
        ratios = [one[1] / own[1] for one, own in zip(usual, times, strict=True)]
        rates = [1 / statistics.median(column) for column in zip(*times, strict=True)]
        rows[group, name] = (*rates, *quartiles(ratios))
    return rows


def show(task, rows, examples, rounds):
    print(f"\n{task}: {examples} examples, {rounds} rounds, {torch.get_num_threads()} threads\n")
    print("| | | examples/s, loading alone | trained on | ratio |\n| --- | --- | --- | --- | --- |")
    for (group, name), (alone, whole, middle, low, high) in rows.items():
        print(
            f"| {group} | {name} | {alone:,.0f} | {whole:,.1f} | "
            f"{middle:.2f} ({low:.2f} to {high:.2f}) |"
        )


def advice(task, rows, groups):
    """What is faster (slower) by both quartiles and worth a change is advised (advised against)."""
    print(f"\nAdvice for {task}:")
    for group, (usual, _, others) in groups.items():
        found = {name: rows[group, name][2:] for name in others}
        best = max(found, key=lambda name: found[name][0])
        middle, low, _ = found[best]
        if low > 1 and middle > WORTH:
            print(
                f"- {group}: take {best}: {middle:.2f} times as many examples a second as {usual}."
            )
            continue
        slower = [name for name, (_, _, high) in found.items() if high < 1]
        same = [name for name in found if name not in slower]
        words = [f"no faster: {', '.join(same)}"] * bool(same)
        words += [
            f"slower: {', '.join(f'{name} ({1 - found[name][0]:.0%})' for name in slower)}"
        ] * bool(slower)  # fmt: skip
        print(f"- {group}: stay with {usual} ({'; '.join(words)}).")


def draw(found, groups):
    """The ratios as bars, a panel for each task."""
    names = [(group, name) for group, (_, _, others) in groups.items() for name in others]
    figure = Figure(figsize=(10, 1 + 0.32 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (task, rows) in zip(panels, found.items(), strict=True):
        middle, low, high = zip(*(rows[key][2:] for key in names), strict=True)
        spread = [
            [m - a for m, a in zip(middle, low, strict=True)],
            [b - m for m, b in zip(middle, high, strict=True)],
        ]
        colours = [f"C{list(groups).index(group)}" for group, _ in names]
        axes.barh(range(len(names)), middle, xerr=spread, color=colours, error_kw={"lw": 0.8})
        axes.axvline(1, color="0.3", lw=0.8)
        axes.set(xlabel="examples trained on per second, to the usual way", title=task)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(
        range(len(names)), [f"{group}: {name}" for group, name in names], fontsize=8
    )
    panels[0].invert_yaxis()
    path = FIGURES / "data_loading.png"
    figure.savefig(path, dpi=100)
    print(f"\nfigure: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["sst2", "imdb"], choices=DATA)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds must be at least 2: quartiles need some")
    warnings.filterwarnings("ignore")
    device, rounds, groups = arguments.device, arguments.rounds, dict(GROUPS)
    if device.startswith("cuda"):
        groups["memory"] = PINNED
    found = {}
    for task in arguments.tasks:
        times = measured(task, groups, EXAMPLES[task], rounds, device)
        found[task] = compared(times, groups)
        show(task, found[task], EXAMPLES[task], rounds)
        advice(task, found[task], groups)
    draw(found, groups)


if __name__ == "__main__":
    main()
