"""Structured pruning of language models: perplexity against the multiplications that remain.

    python benchmarks/perplexity_table.py [--model stories260k] [--seeds 0 1 2]
        [--levels .75 .5 .35 .25]
        [--methods fisher activation magnitude random layers post-training]

``stories260k`` is a pretrained Llama with grouped-query attention, measured on stories that it
generated itself at temperature 1: 3,200 for calibration and recovery, and 400 others, from another
seed, for the test. No model can be better on them than the dense one, so the perplexity shows what
pruning loses and not how good the language is. ``gpt2`` is a small one, trained from scratch for
each seed on unlabelled IMDB reviews and tested on reviews of the test split.

A seed determines the order of the data, the calibration examples, the random scores and, of
``gpt2``, the training from scratch. Each method reduces the multiply-accumulates (MACs) of the
blocks to each level in three pruning steps in the first half of a short run, and recovers in the
rest. "layers" removes the layers without which the predictions change least, as many as come
closest to a level; "post-training" does not train. The baseline is "dense": the same model trained
for as many steps, and for "post-training" not trained.

Prints a table and draws benchmarks/figures/perplexity_MODEL.png. Existing results are reused.
Nothing is chosen on the test split.
"""

import argparse
import json
import logging
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.ticker import LogLocator, NullLocator
from structured_table import trainer_for
from studies import save_curves
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_compress.callbacks import LayerPruning, PostTrainingPruning, StructuredPruning
from lightning_compress.data import LanguageModelingDataModule
from lightning_compress.evaluation.footprint import count_macs
from lightning_compress.modules import FineTuningModule
from lightning_compress.saving import save_compressed

STORIES = "../shared/models/stories260k"
ROOT = Path("logs/perplexity_table")
FIGURES = Path("benchmarks/figures")
TOKENS = 128  # of an example, at most
STORY = 288  # maximum generated tokens; more than TOKENS, so that only true ends are read


@dataclass(frozen=True)
class Subject:
    """A model and its texts; ``batches`` of a pruning run and ``calibration`` examples suit a CPU.

    ``data`` are those of a pruning run, ``scratch`` what to build and train the model from.
    """

    layers: int
    batches: int
    calibration: int
    data: dict[str, Any]
    scratch: dict[str, Any] | None = None


IMDB = {"path": "../shared/data/imdb",
        "splits": {"train": "unsupervised.jsonl.gz", "test": "test.jsonl.gz"}}  # fmt: skip
SUBJECTS = {
    "stories260k": Subject(
        layers=5, batches=80, calibration=128,
        # One story an example: first and last token are the same, and packing would double it.
        data={"path": str(ROOT / "stories"), "packing": False},
    ),
    "gpt2": Subject(
        layers=4, batches=60, calibration=128,
        data={**IMDB, "limits": {"train": 1600, "test": 100}},
        scratch={"model_type": "gpt2", "n_layer": 4, "n_embd": 128, "n_head": 4,
                 "n_positions": TOKENS, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
}  # fmt: skip


def generate_stories():
    """Generate texts with the dense model, unless they exist."""
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    model = AutoModelForCausalLM.from_pretrained(STORIES).eval()
    for seed, (split, count) in enumerate({"train": 3200, "test": 400}.items()):
        path = ROOT / "stories" / f"{split}.jsonl"
        if path.is_file():
            continue
        print(f"writing {path}", flush=True)
        torch.manual_seed(seed)
        texts = []
        for _ in range(count // 400):
            ids = model.generate(
                torch.full((400, 1), tokenizer.bos_token_id),
                max_new_tokens=STORY, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            )  # fmt: skip
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def callbacks_for(name, method, level):
    subject = SUBJECTS[name]
    if method == "dense":
        return []
    if method == "layers":
        return [LayerPruning(removed_count=round(subject.layers * (1 - level)), warmup=0.0)]
    if method == "post-training":
        return [
            PostTrainingPruning(
                removed_macs_fraction=1 - level, calibration_examples=subject.calibration
            )
        ]
    return [
        StructuredPruning(
            removed_macs_fraction=1 - level, pruning_steps=3, warmup=0.0, recovery=0.5,
            score=method, calibration_examples=subject.calibration,
        )
    ]  # fmt: skip


def levels_for(name, method, levels):
    """Layers are few: they reach only some levels, the nearest of which stand for those asked."""
    layers = SUBJECTS[name].layers
    if method != "layers":
        return levels
    return sorted({max(1, round(layers * level)) / layers for level in levels}, reverse=True)


def parts_of(name, seed, **options):
    """The data and the module of a run."""
    L.seed_everything(seed, verbose=False)
    data = LanguageModelingDataModule(
        **SUBJECTS[name].data, tokenizer=STORIES, seed=seed, validation_fraction=0.02,
        max_length=TOKENS, batch_size=16,
    )  # fmt: skip
    return data, FineTuningModule(task="causal-lm", **options)


def start_of(name, seed):
    """The folder of the dense model to prune; trained from scratch if it has to be and is not."""
    scratch = SUBJECTS[name].scratch
    if scratch is None:
        generate_stories()
        return STORIES
    folder = ROOT / f"{name}-seed{seed}"
    if not (folder / "config.json").is_file():
        print(f"training {folder.name}", flush=True)
        data, module = parts_of(name, seed, config=scratch, learning_rate=2e-3)
        trainer_for(1.0, []).fit(module, datamodule=data)
        save_compressed(module.model, folder)
    return folder


def block_macs(model, batch):
    """Multiplications of the blocks per example: all but those of the layer that names the word."""
    words = model.get_output_embeddings().weight.numel()
    return count_macs(model, batch) - words * batch["input_ids"].shape[1]


def run(name, method, level, seed, batches):
    """One run; gives perplexity, tokens and the multiplications of an example."""
    path = ROOT / f"{name}-{method}-{level}-{batches}-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    start = start_of(name, seed)
    data, module = parts_of(name, seed, pretrained=str(start), learning_rate=5e-4)
    print(f"running {path.stem}", flush=True)
    trainer = trainer_for(batches, callbacks_for(name, method, level))
    trainer.fit(module, datamodule=data)
    perplexity = trainer.test(module, datamodule=data, verbose=False)[0]["test_perplexity"]
    batches_of_test = list(data.test_dataloader())
    result = {
        "perplexity": perplexity,
        "block_macs": block_macs(module.model, batches_of_test[0]),
        "macs": count_macs(module.model, batches_of_test[0]),
        "tokens": sum(int((batch["labels"][:, 1:] >= 0).sum()) for batch in batches_of_test),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def table(name, methods, levels, seeds):
    lengths = {m: 0 if m == "post-training" else SUBJECTS[name].batches for m in methods}
    dense = {
        length: [run(name, "dense", 1, seed, length) for seed in seeds]
        for length in sorted({0, *lengths.values()})
    }
    means = {n: statistics.mean(one["perplexity"] for one in found) for n, found in dense.items()}
    rows, curves = [], {}
    for method, length in lengths.items():
        for level in levels_for(name, method, levels):
            found = [run(name, method, level, seed, length) for seed in seeds]
            pairs = list(zip(found, dense[length], strict=True))
            blocks, whole = (
                100 * statistics.mean(one[key] / full[key] for one, full in pairs)
                for key in ("block_macs", "macs")
            )
            gaps = [100 * (one["perplexity"] / full["perplexity"] - 1) for one, full in pairs]
            spread = f" ± {statistics.stdev(gaps):.1f}" if len(gaps) > 1 else ""
            perplexity = statistics.mean(one["perplexity"] for one in found)
            curves.setdefault(method, [(100.0, means[length])]).append((blocks, perplexity))
            rows.append(
                f"| {method} | {level:.0%} | {blocks:.1f} % | {whole:.1f} % | {perplexity:.2f} | "
                f"{statistics.mean(gaps):+.1f}{spread} % |"
            )
    print(f"\n{name}: perplexity on {dense[0][0]['tokens']:,} test tokens, seeds {seeds}")
    for length, mean in means.items():
        print(f"dense after {length} batches more: {mean:.2f}")
    print("\n| method | asked to keep | blocks' MACs | all MACs | perplexity | to dense |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    draw(name, curves, means[0])


def draw(name, curves, dense):
    def prepare(axes):
        axes.axhline(dense, color="0.8", label="dense, not trained on")
        axes.set(
            xlabel="multiplications of the blocks that remain, %",
            ylabel="perplexity", yscale="log", title=name,
        )  # fmt: skip
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())

    save_curves(FIGURES / f"perplexity_{name}.png", curves, prepare)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stories260k", choices=SUBJECTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--levels", nargs="+", type=float, default=[0.75, 0.5, 0.35, 0.25])
    parser.add_argument(
        "--methods", nargs="+",
        default=["fisher", "activation", "magnitude", "random", "layers", "post-training"],
    )  # fmt: skip
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    table(arguments.model, arguments.methods, arguments.levels, arguments.seeds)


if __name__ == "__main__":
    main()
