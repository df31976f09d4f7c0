"""Magnitude pruning on real text: BERT-mini on SST-2 and IMDB, dense and at 50, 70 and 90 %.

    python benchmarks/magnitude_table.py [--tasks sst2 imdb] [--seeds 0 1 2] [--levels 0 .5 .7 .9]

For each task and seed it fine-tunes imdb-bert-mini (configs/finetune_TASK.yaml with
benchmarks/local/TASK.yaml) and prunes the result to each level (configs/magnitude_TASK.yaml), then
prints a table of test accuracies from the reports. Level 0 trains for as many steps without
pruning: the dense baseline of the pruned models.

Existing reports are reused, so the command can be interrupted, and a second call only prints.
Nothing is chosen on the test split: the checkpoint is the best one on validation rows split off the
training rows, and all hyper-parameters are those of the recipes.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

# Batches of a pruning run: long enough to recover, short enough for a CPU.
BATCHES = {"sst2": 400, "imdb": 80}
MEASURE = """
trainer:
  enable_progress_bar: false
  callbacks+:
    class_path: lightning_compress.callbacks.CompressionBenchmark
    init_args: {runtimes: [eager], precisions: [fp32], latency_examples: 20, seconds: 0.5}
"""


def run(name, recipe, task, seed, *options):
    """One run of the command line; gives its report, which is reused if it exists."""
    folder = Path("logs") / name / "version_0"
    if not (folder / "report.json").is_file():
        overlay = Path("logs") / f"{name}.yaml"
        overlay.write_text(MEASURE)
        command = [
            *(sys.executable, "-c", "from lightning_compress.cli.main import main; main()", "fit"),
            *("--config", f"configs/{recipe}_{task}.yaml"),
            *("--config", f"benchmarks/local/{task}.yaml"),
            *("--seed_everything", str(seed), "--data.seed", str(seed)),
            *("--trainer.logger.name", name, "--trainer.logger.version", "0"),
            *options,
            *("--config", str(overlay)),
        ]
        print(f"running {name}", flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((folder / "report.json").read_text())


def last_accuracy(report):
    """Of the compressed model, or of the dense one where nothing was pruned."""
    return report["rows"][-1]["metrics"]["accuracy"]


def one_seed(task, seed, levels):
    dense_run = f"finetune_{task}-seed{seed}"
    report = run(dense_run, "finetune", task, seed)
    found = {"dense": last_accuracy(report)}
    for level in levels:
        report = run(
            *(f"magnitude_{task}-{level}-seed{seed}", "magnitude", task, seed),
            *("--model.pretrained", f"logs/{dense_run}/version_0/model"),
            *("--trainer.callbacks.sparsity", str(level)),
            *("--trainer.limit_train_batches", str(BATCHES[task])),
        )
        found[level] = last_accuracy(report)
    return found, report["task"]["examples"]


def table(task, seeds, levels):
    rows = [one_seed(task, seed, levels) for seed in seeds]
    examples = rows[0][1]
    dense = statistics.mean(found["dense"] for found, _ in rows)
    error = 100 * (dense * (1 - dense) / examples) ** 0.5
    print(f"\n{task}: accuracy in % on {examples} test examples, {len(seeds)} seeds")
    print(f"standard error of one accuracy: {error:.2f} points\n")
    heads = " | ".join(f"seed {seed}" for seed in seeds)
    print(f"| sparsity | {heads} | mean | to {levels[0]:.0%} |")
    print("| --- |" + " --- |" * (len(seeds) + 2))
    for level in ("dense", *levels):
        values = [100 * found[level] for found, _ in rows]
        gaps = [100 * (found[level] - found[levels[0]]) for found, _ in rows]
        spread = f" ± {statistics.stdev(gaps):.2f}" if len(gaps) > 1 else ""
        name = "fine-tuned" if level == "dense" else f"{level:.0%}"
        gap = "" if level == levels[0] else f"{statistics.mean(gaps):+.2f}{spread}"
        cells = " | ".join(f"{value:.2f}" for value in values)
        print(f"| {name} | {cells} | {statistics.mean(values):.2f} | {gap} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["sst2", "imdb"], choices=BATCHES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--levels", nargs="+", type=float, default=[0.0, 0.5, 0.7, 0.9])
    arguments = parser.parse_args()
    for task in arguments.tasks:
        table(task, arguments.seeds, arguments.levels)


if __name__ == "__main__":
    main()
