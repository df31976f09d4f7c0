"""What IterativeMagnitudePruning costs a training step, beside Lightning's own ModelPruning.

    OMP_NUM_THREADS=2 python benchmarks/pruning_overhead.py [--blocks 20]

A BERT-mini (4 layers, hidden size 256) is trained with AdamW on batches of 32 sentences of 48
tokens: without pruning, with the callback, and with ModelPruning, both updating their global masks
every 20 steps. The three runs take turns after every step in this one process, so that whatever
else the machine does hits all alike; printed are the median and the quartiles of the ratios between
blocks of 20 steps. The callback may cost at most 3 % a step.
"""

import argparse
import logging
import statistics
import threading
import time
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelPruning
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress.callbacks import IterativeMagnitudePruning
from lightning_compress.models import structure_of

MAX_COST = 0.03
BATCH, TOKENS, INTERVAL, WARMUP = 32, 48, 20, 4


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = BertForSequenceClassification(
            BertConfig(
                hidden_size=256,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=1024,
            )
        )

    def training_step(self, batch, batch_idx):
        return self.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


class Turns:
    """Lets several runs, each in its thread, make one step after the other, and times each step.

    A step is all that lies between two starts of a training batch.
    """

    def __init__(self, runs):
        self.runs, self.next = runs, 0
        self.changed = threading.Condition()
        self.started = 0.0
        self.seconds = {way: [] for way in runs}

    def wait(self, way):
        with self.changed:
            self.changed.wait_for(lambda: self.runs[self.next] is way)
        self.started = time.perf_counter()

    def pass_on(self, way):
        self.seconds[way].append(time.perf_counter() - self.started)
        with self.changed:
            self.next = (self.next + 1) % len(self.runs)
            self.changed.notify_all()


class OneStepAtATime(L.Callback):
    def __init__(self, turns, way):
        self.turns, self.way = turns, way

    def on_train_batch_start(self, *_):
        self.turns.pass_on(self.way)
        self.turns.wait(self.way)

    def on_train_end(self, *_):
        self.turns.pass_on(self.way)


def nothing(module):
    return []


def ours(module):
    return [
        IterativeMagnitudePruning(
            sparsity=0.8, schedule="linear", warmup=1, recovery=0, interval=INTERVAL, unit="steps"
        )
    ]


def lightnings(module):
    layers = [module.model.get_submodule(n) for n in structure_of(module.model).linear_names()]
    return [
        ModelPruning(
            "l1_unstructured",
            parameters_to_prune=[(layer, "weight") for layer in layers],
            use_global_unstructured=True,
            amount=0.4,  # of what is left, every time
        )
    ]


def train(way, turns, steps):
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "input_ids": torch.randint(1000, 30000, (TOKENS,), generator=generator),
            "labels": torch.tensor(index % 2),
        }
        for index in range(BATCH * INTERVAL)  # an epoch is an interval: ModelPruning goes by epochs
    ]
    turns.wait(way)
    module = Module()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[OneStepAtATime(turns, way), *way(module)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir="logs/pruning_overhead",
    )
    trainer.fit(module, torch.utils.data.DataLoader(rows, BATCH))


def blocks(seconds):
    """Seconds a step of each whole block, without what came before the first steps."""
    steps = seconds[1 + WARMUP :]
    starts = range(0, len(steps) - INTERVAL + 1, INTERVAL)
    return [sum(steps[start : start + INTERVAL]) / INTERVAL for start in starts]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=20)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    ways = {
        nothing: "without pruning",
        ours: "IterativeMagnitudePruning",
        lightnings: "ModelPruning",
    }
    turns = Turns(list(ways))
    steps = WARMUP + arguments.blocks * INTERVAL
    runs = [threading.Thread(target=train, args=(way, turns, steps)) for way in ways]
    for run in runs:
        run.start()
    for run in runs:
        run.join()

    found = {way: blocks(turns.seconds[way]) for way in ways}
    print(f"{torch.get_num_threads()} threads, {arguments.blocks} blocks of {INTERVAL} steps")
    for way, name in ways.items():
        line = f"{name:26} {1000 * statistics.median(found[way]):8.1f} ms a step"
        if way is not nothing:
            ratios = [b / a for a, b in zip(found[nothing], found[way], strict=True)]
            low, middle, high = (ratio - 1 for ratio in statistics.quantiles(ratios, n=4))
            line += f": {middle:+.1%} (quartiles {low:+.1%} and {high:+.1%})"
            if way is ours:
                cost = middle
        print(line)
    verdict = "reached" if cost <= MAX_COST else "MISSED"
    print(f"{verdict}: the callback costs {cost:.1%} a step (at most {MAX_COST:.0%})")


if __name__ == "__main__":
    main()
