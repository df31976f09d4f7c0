"""A deep and narrow BERT for the studies: 12 layers of width 128, fine-tuned on real text.

    python benchmarks/deep_encoder.py [--tasks imdb sst2] [--seeds 0 1 2]

There is none to be had, so imdb-bert-tiny is made six times as deep (each of its two layers six
times in a row, as in Gong et al., "Efficient Training of BERT by Progressively Stacking", 2019,
https://proceedings.mlr.press/v97/gong19a.html) and fine-tuned for each task and seed
(configs/finetune_TASK.yaml with benchmarks/local/TASK.yaml). Prints the accuracies on the test
split. A model that is there is not made again.
"""

import argparse
import copy
from pathlib import Path

from magnitude_table import last_accuracy, run
from torch import nn
from transformers import AutoModelForMaskedLM, AutoTokenizer

TINY = "../shared/models/imdb-bert-tiny"
FOLDER = Path("logs/deep_encoder")
TIMES = 6
# Cut as in the studies, so that the whole of it is trained for what it is tested on.
OPTIONS = {"imdb": ("--data.max_length", "128"), "sst2": ()}


def stack():
    """Write the deep model, not yet fine-tuned."""
    model = AutoModelForMaskedLM.from_pretrained(TINY)
    layers = [copy.deepcopy(layer) for layer in model.bert.encoder.layer for _ in range(TIMES)]
    model.bert.encoder.layer = nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    model.save_pretrained(FOLDER)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(FOLDER)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["imdb", "sst2"], choices=OPTIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    if not FOLDER.is_dir():
        stack()
    for task in arguments.tasks:
        for seed in arguments.seeds:
            report = run(
                *(f"finetune_{task}-deep-seed{seed}", "finetune", task, seed),
                *("--model.pretrained", str(FOLDER), *OPTIONS[task]),
            )
            examples = report["task"]["examples"]
            print(f"{task}, seed {seed}: {last_accuracy(report):.2%} of {examples}", flush=True)


if __name__ == "__main__":
    main()
