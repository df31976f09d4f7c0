"""Batches of like length against padding everything to the maximum: tokens and speed.

    python benchmarks/length_bucketing.py [--shared ../shared] [--rounds 3]

One evaluation pass of a BERT-mini over the SST-2 development set (at most 128 tokens) and over the
first 256 test reviews of IMDB (at most 512), both ways in turn within one process. Prints the
tokens that the model computes on, examples per second (median over the rounds, with the range) and
the median of the ratios between neighbouring passes.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from lightning_compress.data import TextClassificationDataModule
from lightning_compress.models.forward import model_inputs
from lightning_compress.saving import quiet_transformers

TASKS = {
    "SST-2": {
        "path": "sst2",
        "splits": {"train": "train.tsv", "test": "dev.tsv"},
        "text": "sentence",
        "max_length": 128,
    },
    "IMDB": {
        "path": "imdb",
        "splits": {"train": "train.jsonl.gz", "test": "test.jsonl.gz"},
        "max_length": 512,
        "limits": {"train": 64, "test": 256},
    },
}


def batches(shared, options, padding):
    data = TextClassificationDataModule(
        **{**options, "path": str(shared / "data" / options["path"])},
        tokenizer=str(shared / "models" / "imdb-bert-mini"),
        batch_size=32,
    )
    data.setup("test")
    if padding == "max_length":
        examples = data.examples("test")
        examples.padded = np.full_like(examples.padded, data.max_length)
    return list(data.test_dataloader())


@torch.inference_mode()
def seconds(model, loaded):
    start = time.perf_counter()
    for batch in loaded:
        model(**model_inputs(model, batch))
    return time.perf_counter() - start


def compare(name, model, shared, options, rounds):
    ways = {way: batches(shared, options, way) for way in ("longest", "max_length")}
    examples = sum(len(batch["labels"]) for batch in ways["longest"])
    tokens = {way: sum(b["input_ids"].numel() for b in loaded) for way, loaded in ways.items()}
    real = sum(int(batch["attention_mask"].sum()) for batch in ways["longest"])
    for loaded in ways.values():
        seconds(model, loaded[:1])
    times = [{way: seconds(model, loaded) for way, loaded in ways.items()} for _ in range(rounds)]
    print(f"{name}: {examples} examples, {real:,} real tokens, {rounds} rounds")
    for way in ways:
        speed = [examples / row[way] for row in times]
        print(
            f"  {way:10}  {tokens[way]:9,} tokens  {statistics.median(speed):7.1f} examples/s "
            f"[{min(speed):.1f}, {max(speed):.1f}]"
        )
    ratios = [row["max_length"] / row["longest"] for row in times]
    fewer = tokens["max_length"] / tokens["longest"]
    print(
        f"  bucketed computes on {fewer:.1f} times fewer tokens and "
        f"is {statistics.median(ratios):.1f} times faster [{min(ratios):.1f}, {max(ratios):.1f}]"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(
            arguments.shared / "models" / "imdb-bert-mini"
        ).eval()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, options in TASKS.items():
        compare(name, model, arguments.shared, options, arguments.rounds)


if __name__ == "__main__":
    main()
