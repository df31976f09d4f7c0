"""A training step of FineTuningModule beside a plain loop of transformers and PyTorch.

    OMP_NUM_THREADS=2 python benchmarks/training_step.py [--blocks 20] [--layers 4] [--hidden 256]

A BERT is trained from scratch on batches of 32 texts of 48 tokens: by a loop of ten lines; by
FineTuningModule in a Trainer without anything else; and as `lightning-compress fit` does it, with
progress bar, TensorBoard, checkpoints, RunSafety and the benchmark that ends a run. Batches,
dropout, optimizer and schedule are the same. The three take turns every 40 steps, each in a process
of its own that sleeps meanwhile, so that whatever else the machine does hits all alike. Printed are
the median and the quartiles of the ratios between neighbouring blocks of 40 steps, and the same of
the time that the process spent on a CPU, which on a busy machine is less sensitive to noise. A step
may take at most 5 % longer than in the loop.
"""

import argparse
import functools
import logging
import os
import statistics
import sys
import tempfile
import types
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from transformers import BertConfig, BertForSequenceClassification, get_scheduler
from turns import INTERVAL, against, take_turns

from lightning_compress.callbacks import CompressionBenchmark, RunSafety
from lightning_compress.evaluation.host import host_facts
from lightning_compress.modules import FineTuningModule
from lightning_compress.modules.optimizers import adamw

MAX_COST = 0.05
BATCH, TOKENS, WARMUP, RATE, DECAY = 32, 48, 0.1, 5e-5, 0.01


class Data(L.LightningDataModule):
    """Random sentences of 48 tokens, one epoch of all steps."""

    num_labels, problem_type, pad_token_id = 2, "single_label_classification", 0
    max_length, task_name = TOKENS, "random"

    def __init__(self, steps):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1000, 30000, (BATCH * steps, TOKENS), generator=generator)
        mask = torch.ones(TOKENS, dtype=torch.long)
        self.rows = [
            {"input_ids": row, "attention_mask": mask, "labels": torch.tensor(index % 2)}
            for index, row in enumerate(ids)
        ]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.rows, BATCH)


def options_of(size):
    layers, hidden = size
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden, "vocab_size": 30522,
    }  # fmt: skip


def plain(size, steps, turns):
    """What one would write without this package and without Lightning."""
    model = BertForSequenceClassification(BertConfig(**options_of(size))).train()
    optimizer = adamw(model, RATE, DECAY)
    schedule = get_scheduler("linear", optimizer, int(WARMUP * steps), steps)
    for step, batch in enumerate(Data(steps).train_dataloader()):
        turns.on_train_batch_start(types.SimpleNamespace(global_step=step))
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    turns.on_train_end()
    return sum(one.numel() for one in model.parameters())


def module(size, steps, turns, trainer):
    model = FineTuningModule(
        config={"model_type": "bert", **options_of(size)},
        learning_rate=RATE, weight_decay=DECAY, warmup=WARMUP,
    )  # fmt: skip
    trainer.fit(model, Data(steps))
    return sum(one.numel() for one in model.model.parameters())


def in_trainer(size, steps, turns):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[turns], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    return module(size, steps, turns, trainer)


def on_the_command_line(size, steps, turns):
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[turns, CompressionBenchmark(), RunSafety()],
            logger=TensorBoardLogger(folder, name=None, default_hp_metric=False),
        )  # fmt: skip
        return module(size, steps, turns, trainer)


WAYS = {
    plain: "plain loop",
    in_trainer: "FineTuningModule",
    on_the_command_line: "lightning-compress fit",
}


def train(way, steps, turns):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    with Path(os.devnull).open("w") as nowhere:
        sys.stderr = sys.stdout = nowhere  # progress bars are drawn all the same
        parameters = way(steps=steps, turns=turns)
        sys.stderr, sys.stdout = sys.__stderr__, sys.__stdout__
    return parameters, [seconds / INTERVAL for seconds in turns.cpu_seconds]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    arguments = parser.parse_args()

    size = arguments.layers, arguments.hidden
    ways = [functools.partial(way, size) for way in WAYS]
    found = take_turns(train, ways, arguments.blocks)
    assert len({parameters for _, (parameters, _) in found}) == 1  # all train the same model
    print(
        f"{host_facts().cpu}, {torch.get_num_threads()} threads, BERT of {size[0]} layers of "
        f"{size[1]}, {arguments.blocks} blocks of {INTERVAL} steps"
    )
    costs, (loop, (_, loop_cpu)) = [], found[0]
    for name, (seconds, (_, cpu)) in zip(WAYS.values(), found, strict=True):
        line = f"{name:24} {1000 * statistics.median(seconds):7.1f} ms a step"
        if seconds is not loop:
            line += f": {quartiles(against(loop, seconds))}, on a CPU "
            line += quartiles(against(loop_cpu, cpu))
            costs.append(against(loop_cpu, cpu)[1])
        print(line)
    verdict = "reached" if max(costs) <= MAX_COST else "MISSED"
    print(f"{verdict}: at most {MAX_COST:.0%} more time on a CPU than the loop")


def quartiles(ratios):
    low, middle, high = ratios
    return f"{middle:+.1%} (quartiles {low:+.1%} and {high:+.1%})"


if __name__ == "__main__":
    main()
