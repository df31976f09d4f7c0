"""What weights of 7 bits (±63) cost against weights of 8 bits (±127) when activations are int8.

    python benchmarks/weight_range_table.py [--models minilm-sst2 minilm-mrpc minilm-stsb mini-sst2
        gpt2] [--stages ptq qat] [--seeds 0 1 2]

``minilm`` is all-MiniLM-L6-v2, which this script fine-tunes on 8,000 sentences of SST-2 and on
MRPC, and which is used as it is for STS-B: the correlation of the cosine of mean-pooled embeddings
with the score. ``mini-sst2`` is BERT-mini as fine-tuned by benchmarks/magnitude_table.py, ``gpt2``
the small language model of benchmarks/perplexity_table.py.

"ptq" quantizes the model without training. "qat" trains it for some batches of its own training
data, quantized or, for comparison, in float32, all in the same order. A seed determines the dense
model, the order of the data and the calibration examples; for STS-B the latter alone.

Prints a table for each model and stage: the metric, the difference between the ranges as the mean
over the seeds with its standard error, and how many predictions on the test split are equal.
Finished runs are not repeated. Nothing is chosen on the test split.
"""

import argparse
import json
import logging
import math
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from perplexity_table import parts_of as language_data
from perplexity_table import start_of as language_model
from quantization_table import calibration_of
from recovery_table import STILL
from structured_table import DATA, fine_tuned
from studies import bare_trainer
from torch.nn import functional
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from transformers import AutoTokenizer

from lightning_compress import load_compressed, quantize_, save_compressed
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.models.forward import model_inputs
from lightning_compress.modules import FineTuningModule, QATModule
from lightning_compress.quantization import QuantizationConfig

MINILM = "../shared/models/all-MiniLM-L6-v2"
STSB = {"path": "../shared/data/stsb", "splits": {"train": "train.tsv.gz", "test": "test.tsv.gz"},
        "text": "sentence1", "label": "score"}  # fmt: skip
MRPC = {"path": "../shared/data/mrpc", "text": ["#1 String", "#2 String"], "label": "Quality",
        "splits": {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A model, its data, and how it is trained.

    ``epochs`` at a rate of 1e-4 make the dense model where this script does. A run of
    quantization-aware training has ``batches`` at ``rate``.
    """

    metric: str
    data: dict[str, Any]
    epochs: int | None = None
    batches: int = 0
    rate: float = 5e-5


SUBJECTS = {
    "minilm-sst2": Subject(
        "accuracy, %", DATA["sst2"] | {"limits": {"train": 8000}}, epochs=1, batches=40
    ),
    "minilm-mrpc": Subject("accuracy, %", MRPC, epochs=3, batches=30),
    "minilm-stsb": Subject("Spearman correlation, %", STSB),
    "mini-sst2": Subject("accuracy, %", DATA["sst2"], batches=80, rate=1e-4),
    "gpt2": Subject("perplexity", {}, batches=60, rate=3e-4),
}
SCHEMES = ("int8-dynamic", "int8-static")
ROOT = Path("logs/weight_range_table")


def data_for(name, seed):
    """The data of a subject."""
    if name == "gpt2":
        return language_data(name, seed)[0]
    tokenizer = fine_tuned("sst2", seed) if name == "mini-sst2" else MINILM
    return TextClassificationDataModule(
        **SUBJECTS[name].data, tokenizer=str(tokenizer), seed=seed, validation_fraction=0.05
    )


def start_of(name, seed):
    """The folder of the dense model; made if this script makes it."""
    if name == "gpt2":
        return language_model(name, seed)
    if name == "mini-sst2":
        return fine_tuned("sst2", seed)
    if SUBJECTS[name].epochs is None:
        return MINILM
    folder = ROOT / f"{name}-seed{seed}"
    if not (folder / "config.json").is_file():
        print(f"training {folder.name}", flush=True)
        L.seed_everything(seed, verbose=False)
        module = FineTuningModule(pretrained=MINILM, config=STILL, learning_rate=1e-4)
        trainer = bare_trainer(ROOT, max_epochs=SUBJECTS[name].epochs, limit_val_batches=0)
        trainer.fit(module, datamodule=data_for(name, seed))
        save_compressed(module.model, folder)
    return folder


def quantized(name, config, seed):
    """The dense model, or without training its quantized form."""
    model = load_compressed(start_of(name, seed))
    if config is not None:
        data = data_for(name, seed)
        data.setup("fit")
        batches = calibration_of(data) if config.needs_calibration else ()
        quantize_(model, config, calibration_batches=batches)
    return model


def trained(name, config, seed):
    """The model after more training, quantized or not."""
    subject, folder = SUBJECTS[name], start_of(name, seed)
    options = {"pretrained": str(folder), "learning_rate": subject.rate}
    options |= {"task": "causal-lm"} if name == "gpt2" else {"config": STILL}
    L.seed_everything(seed, verbose=False)
    if config is None:
        module = FineTuningModule(**options)
    else:
        module = QATModule(quantization=config, **options)
    trainer = bare_trainer(
        ROOT, max_epochs=1, limit_train_batches=subject.batches, limit_val_batches=0
    )
    trainer.fit(module, datamodule=data_for(name, seed))
    return module.model.eval()


def same(ones, others):
    """The fraction of equal values at the same places."""
    return sum(one == other for one, other in zip(ones, others, strict=True)) / len(ones)


def classified(model, batches):
    """Accuracy in % of a classifier, and its predictions."""
    predictions, labels = [], []
    for batch in batches:
        predictions += model(**model_inputs(model, batch)).logits.argmax(-1).tolist()
        labels += batch["labels"].tolist()
    share = same(predictions, labels)
    return {
        "metric": 100 * share,
        "error": 100 * math.sqrt(share * (1 - share) / len(labels)),
        "examples": len(labels),
        "predictions": predictions,
    }


def continued(model, batches):
    """Perplexity of a language model, and the most likely token at each place."""
    predictions, losses = [], []
    for batch in batches:
        logits, labels = model(**model_inputs(model, batch)).logits[:, :-1], batch["labels"][:, 1:]
        known = labels >= 0
        losses.append(functional.cross_entropy(logits[known], labels[known], reduction="none"))
        predictions.append(logits[known].argmax(-1))
    losses = torch.cat(losses).double()
    perplexity = losses.mean().exp().item()
    return {
        "metric": perplexity,
        "error": perplexity * losses.std().item() / math.sqrt(len(losses)),
        "examples": len(losses),
        "predictions": torch.cat(predictions).tolist(),
    }


def similar(model, data):
    """Rank correlation in % of the cosine of two sentences' embeddings with their score."""
    rows = data.sources["test"].read(["sentence1", "sentence2", "score"]).to_pydict()
    tokenizer = AutoTokenizer.from_pretrained(MINILM)

    def embedded(texts):
        means = []
        for first in range(0, len(texts), 32):
            batch = tokenizer(
                texts[first : first + 32], padding=True, truncation=True, return_tensors="pt"
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            means.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(means)

    cosines = functional.cosine_similarity(embedded(rows["sentence1"]), embedded(rows["sentence2"]))
    scores = torch.tensor([float(score) for score in rows["score"]])
    correlation = spearman_corrcoef(cosines, scores).item()
    return {
        "metric": 100 * correlation,
        "pearson": 100 * pearson_corrcoef(cosines, scores).item(),
        "error": 100 * (1 - correlation**2) / math.sqrt(len(scores) - 1),
        "examples": len(scores),
    }


@torch.no_grad()
def measured(name, model, seed):
    """What the model does on the whole test split."""
    data = data_for(name, seed)
    if name == "minilm-stsb":
        return similar(model, data)
    data.setup("test")
    return (continued if name == "gpt2" else classified)(model, data.test_dataloader())


def run(name, stage, scheme, full_range, seed):
    """One run, measured; of float32 if there is no scheme."""
    label = f"{scheme}-{127 if full_range else 63}" if scheme else "fp32"
    path = ROOT / f"{name}-{stage}-{label}-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    config = QuantizationConfig(scheme, full_range=full_range) if scheme else None
    model = (quantized if stage == "ptq" else trained)(name, config, seed)
    print(f"measuring {path.stem}", flush=True)
    found = measured(name, model, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return found


def mean_and_error(values, digits, sign="+"):
    """The mean with its standard error over the seeds, if there are several."""
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    error = "" if spread is None else f" ± {spread:.{digits}f}"
    return f"{statistics.mean(values):{sign}.{digits}f}{error}"


def equal(ones, others):
    """Mean share of equal predictions, in %."""
    if "predictions" not in ones[0]:
        return "-"
    pairs = zip(ones, others, strict=True)
    shares = [same(one["predictions"], other["predictions"]) for one, other in pairs]
    return f"{100 * statistics.mean(shares):.2f}"


def table(name, stage, seeds):
    """Run what is missing and print the table of one subject and stage."""
    digits = 2 if SUBJECTS[name].metric.startswith("accuracy") else 3
    dense = [run(name, stage, None, False, seed) for seed in seeds]
    rows = []
    for scheme in SCHEMES:
        wide, narrow = (
            [run(name, stage, scheme, full_range, seed) for seed in seeds]
            for full_range in (True, False)
        )
        means = [statistics.mean(one["metric"] for one in found) for found in (wide, narrow)]
        gaps = [one["metric"] - other["metric"] for one, other in zip(narrow, wide, strict=True)]
        cells = [scheme, *(f"{mean:.{digits}f}" for mean in means), mean_and_error(gaps, digits)]
        cells += [equal(wide, dense), equal(narrow, dense), equal(narrow, wide)]
        rows.append(f"| {' | '.join(cells)} |")
    mean, error = (statistics.mean(one[key] for one in dense) for key in ("metric", "error"))
    print(f"\n{name}, {stage}, seeds {seeds}: {SUBJECTS[name].metric}")
    print(f"{dense[0]['examples']:,} test examples, standard error {error:.{digits}f}")
    print(f"float32{' after as many batches' if stage == 'qat' else ''}: {mean:.{digits}f}\n")
    print("| scheme | ±127 | ±63 | ±63 to ±127 | % equal: ±127, fp32 | ±63, fp32 | ±63, ±127 |")
    print("|" + " --- |" * 7)
    print("\n".join(rows), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--stages", nargs="+", default=["ptq", "qat"], choices=("ptq", "qat"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    for stage in arguments.stages:
        for name in arguments.models:
            if stage == "ptq" or SUBJECTS[name].batches:
                table(name, stage, arguments.seeds)


if __name__ == "__main__":
    main()
