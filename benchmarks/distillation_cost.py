"""Cost of distillation for a training step, in time and memory: cached teacher and live teacher.

    OMP_NUM_THREADS=2 python benchmarks/distillation_cost.py [--blocks 20]

imdb-bert-tiny is trained on SST-2: plainly, with the answers of a BERT-mini from the cache, and
with the BERT-mini itself. The runs take turns every 40 steps, each in a process of its own. Printed
are the median and the quartiles of the ratios between neighbouring blocks, and the most memory that
each process held while it trained. The cache may cost at most 10 % of the time and 5 % of the
memory.
"""

import argparse
import logging
import statistics
import warnings
from pathlib import Path

import lightning as L
import torch
from turns import INTERVAL, against, take_turns

from lightning_compress.data import TextClassificationDataModule
from lightning_compress.modules import DistillationModule, FineTuningModule

MAX_TIME, MAX_MEMORY = 0.10, 0.05
STUDENT = "../shared/models/imdb-bert-tiny"
TEACHER = "logs/finetune_sst2-seed0/version_0/model"
WAYS = {"plain": None, "cached teacher": "always", "live teacher": "never"}


class MostMemory(L.Callback):
    """The most memory that the process holds from the first step on, in bytes (Linux)."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:  # what the start took is free again
            Path("/proc/self/clear_refs").write_text("5")

    def on_train_end(self, *_):
        status = Path("/proc/self/status").read_text().splitlines()
        lines = dict(line.split(":", 1) for line in status)
        self.bytes = 1024 * int(lines["VmHWM"].split()[0])


def train(way, steps, turns):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    L.seed_everything(0, verbose=False)
    data = TextClassificationDataModule(
        path="../shared/data/sst2", splits={"train": "train.tsv"}, text="sentence",
        tokenizer=STUDENT, validation_fraction=0.05,
    )  # fmt: skip
    options = {"pretrained": STUDENT, "learning_rate": 3e-4}
    module = (
        FineTuningModule(**options)
        if WAYS[way] is None
        else DistillationModule(teacher=TEACHER, teacher_cache=WAYS[way], **options)
    )
    memory = MostMemory()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=20,
        callbacks=[turns, memory],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir="logs/distillation_cost",
    )
    trainer.fit(module, datamodule=data)
    return memory.bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=20)
    blocks = parser.parse_args().blocks
    if not Path(TEACHER).is_dir():
        raise SystemExit(f"{TEACHER} is not there: first python benchmarks/magnitude_table.py")
    found = dict(zip(WAYS, take_turns(train, list(WAYS), blocks), strict=True))
    seconds, memory = found["plain"]
    print(f"{torch.get_num_threads()} threads, {blocks} blocks of {INTERVAL} steps")
    for way, (own, held) in found.items():
        line = f"{way:15} {1000 * statistics.median(own):7.1f} ms a step, {held / 2**20:5.0f} MiB"
        if way != "plain":
            low, middle, high = against(seconds, own)
            more = held / memory - 1
            line += f": {middle:+.1%} (quartiles {low:+.1%} and {high:+.1%}), memory {more:+.1%}"
        if way == "cached teacher":
            reached = middle <= MAX_TIME and more <= MAX_MEMORY
        print(line)
    print(f"{'reached' if reached else 'MISSED'}: at most +{MAX_TIME:.0%} and +{MAX_MEMORY:.0%}")


if __name__ == "__main__":
    main()
