"""Time that IterativeMagnitudePruning adds to a training step, beside Lightning's ModelPruning.

    OMP_NUM_THREADS=2 python benchmarks/pruning_overhead.py [--blocks 20]

A BERT-mini (4 layers, hidden size 256) is trained with FineTuningModule's AdamW on batches of 32
sentences of 48 tokens: without pruning, with the callback, and with ModelPruning, both updating
their global masks every 40 steps, as the callback does by default in a run of 2,000. The three runs
take turns every 40 steps, each in a process of its own that sleeps meanwhile (in one process their
pools of threads get into each other's way), so that whatever else the machine does hits all alike.
Printed are the median and the quartiles of the ratios between neighbouring blocks of 40 steps, and
the time spent inside the callback, which is less sensitive to noise. The callback may cost at most
3 % a step.
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
from turns import INTERVAL, against, take_turns

from lightning_compress.callbacks import IterativeMagnitudePruning, magnitude_pruning
from lightning_compress.models import structure_of
from lightning_compress.modules.optimizers import adamw

MAX_COST = 0.03
BATCH, TOKENS = 32, 48


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
        return adamw(self.model, 1e-5, 0.01)


def timed(call, seconds):
    """The same call, whose time is added to the list."""

    def measured(*args, **options):
        start = time.perf_counter()
        found = call(*args, **options)
        seconds.append(time.perf_counter() - start)
        return found

    return measured


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


def train(way, steps, turns):
    """One run; gives the seconds a step spent inside the callback."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "input_ids": torch.randint(1000, 30000, (TOKENS,), generator=generator),
            "labels": torch.tensor(index % 2),
        }
        for index in range(BATCH * INTERVAL)  # one epoch an interval: ModelPruning prunes by epoch
    ]
    module, inside = Module(), []
    callbacks = way(module)
    if way is ours:  # its work in a step: two hooks of Lightning and one of the optimizer
        magnitude_pruning.apply_masks_ = timed(magnitude_pruning.apply_masks_, inside)
        for hook in ("on_before_optimizer_step", "on_train_batch_end"):
            setattr(callbacks[0], hook, timed(getattr(callbacks[0], hook), inside))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[turns, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir="logs/pruning_overhead",
    )
    trainer.fit(module, torch.utils.data.DataLoader(rows, BATCH))
    return sum(inside) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=20)
    arguments = parser.parse_args()

    ways = {
        nothing: "without pruning",
        ours: "IterativeMagnitudePruning",
        lightnings: "ModelPruning",
    }
    found = dict(zip(ways, take_turns(train, list(ways), arguments.blocks), strict=True))
    dense = found[nothing][0]
    print(f"{torch.get_num_threads()} threads, {arguments.blocks} blocks of {INTERVAL} steps")
    for way, name in ways.items():
        seconds, inside = found[way]
        line = f"{name:26} {1000 * statistics.median(seconds):8.1f} ms a step"
        if way is not nothing:
            low, middle, high = against(dense, seconds)
            line += f": {middle:+.1%} (quartiles {low:+.1%} and {high:+.1%})"
        if way is ours:
            cost = middle
            share = inside / statistics.median(dense)
            line += f"\n{'':26} {1000 * inside:8.1f} ms of it inside its hooks, {share:.1%}"
        print(line)
    verdict = "reached" if cost <= MAX_COST else "MISSED"
    print(f"{verdict}: the callback costs {cost:.1%} a step (at most {MAX_COST:.0%})")


if __name__ == "__main__":
    main()
