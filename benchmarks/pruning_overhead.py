"""What IterativeMagnitudePruning costs a training step, beside Lightning's own ModelPruning.

    OMP_NUM_THREADS=2 python benchmarks/pruning_overhead.py [--rounds 7] [--steps 40]

A BERT-mini (4 layers, hidden size 256) is trained with AdamW on batches of 32 sentences of 48
tokens: without pruning, with the callback, and with ModelPruning, both updating their global masks
every 20 steps. The three take turns in this one process; printed are the median and the range of
the ratios between neighbours. The callback may cost at most 3 % a step.

On a machine that others use too, --clock cpu with OMP_NUM_THREADS=1 counts this process's own
time instead.
"""

import argparse
import logging
import statistics
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


class Clock(L.Callback):
    """Times everything from the first step after a warm-up to the end of the training."""

    def __init__(self, read):
        self.read = read

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == WARMUP:
            self.start = self.read()

    def on_train_end(self, trainer, *_):
        self.seconds = (self.read() - self.start) / (trainer.global_step - WARMUP)


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


def seconds_per_step(callbacks_for, steps, read):
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "input_ids": torch.randint(1000, 30000, (TOKENS,), generator=generator),
            "labels": torch.tensor(index % 2),
        }
        for index in range(BATCH * INTERVAL)  # an epoch is an interval: ModelPruning goes by epochs
    ]
    module, clock = Module(), Clock(read)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=WARMUP + steps,
        callbacks=[clock, *callbacks_for(module)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir="logs/pruning_overhead",
    )
    trainer.fit(module, torch.utils.data.DataLoader(rows, BATCH))
    return clock.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    read = {"wall": time.perf_counter, "cpu": time.process_time}[arguments.clock]
    times = {nothing: [], ours: [], lightnings: []}
    for round_number in range(arguments.rounds):
        order = list(times)[:: 1 if round_number % 2 else -1]  # no one is always last
        for way in order:
            times[way].append(seconds_per_step(way, arguments.steps, read))
    print(
        f"{torch.get_num_threads()} threads, {arguments.rounds} rounds of {arguments.steps} steps"
    )
    print(f"without pruning            {1000 * statistics.median(times[nothing]):8.1f} ms a step")
    for way, name in ((ours, "IterativeMagnitudePruning"), (lightnings, "ModelPruning")):
        ratios = sorted(b / a for a, b in zip(times[nothing], times[way], strict=True))
        print(
            f"{name:26} {1000 * statistics.median(times[way]):8.1f} ms a step: "
            f"{statistics.median(ratios) - 1:+.1%} ({ratios[0] - 1:+.1%} to {ratios[-1] - 1:+.1%})"
        )
        if way is ours:
            cost = statistics.median(ratios) - 1
    verdict = "reached" if cost <= MAX_COST else "MISSED"
    print(f"{verdict}: the callback costs {cost:.1%} a step (at most {MAX_COST:.0%})")


if __name__ == "__main__":
    main()
