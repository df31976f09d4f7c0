"""A cross-encoder that finds the sentence with the answer: nDCG and MRR before and after training.

    OMP_NUM_THREADS=1 python benchmarks/reranking_table.py [--train 2000] [--test 300] [--seed 0]

Pairs of a question and the sentence of Wikipedia that answers it, of SQuAD. A question of the test
has 10 candidates: its sentence and 9 of other questions. They are drawn at random, or they are the
most similar ones by BM25. all-MiniLM-L6-v2 with a new head is trained for one epoch on other
questions, with 3 sentences at random for each; no sentence is in both. Prints the means over the
questions with their standard errors: of a random order, of that of BM25, of the untrained head,
after training, and after quantization.
"""

import argparse
import copy
import csv
import gzip
import json
import math
import random
import re
import tempfile
from collections import Counter
from pathlib import Path

import lightning as L
import torch
from studies import bare_trainer

from lightning_compress.data import RerankingDataModule
from lightning_compress.models.forward import logits_in, model_inputs
from lightning_compress.modules import FineTuningModule
from lightning_compress.quantization import quantize_
from lightning_compress.tasks import task_named
from lightning_compress.tasks.ranking import NormalizedDCG, ReciprocalRank

PAIRS = "../shared/data/squad/question_sentence_pairs.tsv.gz"
MODEL = "../shared/models/all-MiniLM-L6-v2"
NEGATIVES = {"train": 3, "validation": 3, "random": 9, "similar": 9}
VALIDATION = 100  # questions
TASK = task_named("reranking")


class BM25:
    """Score of a sentence for a question, with k1 = 1.2 and b = 0.75.

    Robertson, Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009,
    https://doi.org/10.1561/1500000019.
    """

    def __init__(self, sentences):
        self.counts = {one: Counter(words(one)) for one in sentences}
        self.length = sum(sum(c.values()) for c in self.counts.values()) / len(sentences)
        self.containing = Counter(word for count in self.counts.values() for word in count)

    def __call__(self, question, sentence):
        count = self.counts[sentence]
        damping = 1.2 * (0.25 + 0.75 * sum(count.values()) / self.length)
        return sum(
            self._rarity(word) * 2.2 * count[word] / (count[word] + damping)
            for word in set(words(question))
        )

    def _rarity(self, word):
        having = self.containing[word]
        return math.log(1 + (len(self.counts) - having + 0.5) / (having + 0.5))


def words(text):
    return re.findall(r"\w+", text.lower())


def questions():
    """Pairs of a question and its sentence in random order, each sentence once."""
    with gzip.open(PAIRS, "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    pairs = list({sentence: (question, sentence) for question, sentence in rows}.values())
    random.shuffle(pairs)
    return pairs


def rows_of(pairs, negatives, score=None):
    """A row of the right sentence of each question, and of others: those that score best."""
    sentences = [sentence for _, sentence in pairs]
    for question, right in pairs:
        others = [one for one in sentences if one != right]
        if score is None:
            others = random.sample(others, negatives)
        else:
            others = sorted(others, key=lambda one: -score(question, one))[:negatives]
        for sentence in (right, *others):
            yield {"query": question, "document": sentence, "label": int(sentence == right)}


def write_files(folder, train, test):
    """The files of the splits; gives the rows of the two tests."""
    pairs = questions()
    later = pairs[train : train + VALIDATION]
    # Candidates of the test come from all sentences that are not trained on.
    asked = pairs[train + VALIDATION :]
    bm25 = BM25([sentence for _, sentence in asked])
    split = {"train": pairs[:train], "validation": later, "random": asked, "similar": asked}
    tests = {}
    for name, mine in split.items():
        made = rows_of(mine, NEGATIVES[name], bm25 if name == "similar" else None)
        count = min(len(mine), test) if name in ("random", "similar") else len(mine)
        rows = [row for _, row in zip(range(count * (1 + NEGATIVES[name])), made, strict=False)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        if mine is asked:
            tests[name] = torch.tensor([bm25(row["query"], row["document"]) for row in rows])
    return tests


def data_in(folder, test):
    return RerankingDataModule(
        path=str(folder), tokenizer=MODEL, max_length=64, eval_batch_size=64,
        splits={"train": "train.jsonl", "validation": "validation.jsonl", "test": f"{test}.jsonl"},
        cache_dir=str(folder / "cache"),
    )  # fmt: skip


@torch.no_grad()
def scored(model, data):
    """Scores and labels of the test rows."""
    model.eval()
    parts = []
    for batch in data.test_dataloader():
        logits = logits_in(model(**model_inputs(model, batch)))
        parts.append(TASK.predictions_and_targets(logits, batch["labels"]))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def show(title, test, scores, labels):
    """A line of the table: means over the questions and standard errors."""
    cells = []
    for metric in (NormalizedDCG(), ReciprocalRank()):
        metric.update(scores, labels)
        values = metric.values()
        cells.append(f"{values.mean():.3f} ± {values.std() / len(values) ** 0.5:.3f}")
    print(f"| {test} | {title} | {' | '.join(cells)} |", flush=True)


class Untrained(L.Callback):
    """Measures the model before its first step."""

    def __init__(self, tests):
        self.tests = tests

    def on_fit_start(self, trainer, module):
        for test, data in self.tests.items():
            show("untrained head", test, *scored(module.model, data))
        module.model.train()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    L.seed_everything(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lexical = write_files(folder, options.train, options.test)
        tests = {test: data_in(folder, test) for test in lexical}
        print(f"\n{options.test} questions with 10 candidates\n")
        print("| candidates | order | nDCG@10 | MRR@10 |\n| --- | --- | --- | --- |")
        for test, data in tests.items():
            data.setup("test")
            labels = torch.tensor([[row // 10, row % 10 == 0] for row in range(len(lexical[test]))])
            show("at random, the mean", test, torch.zeros(len(labels)), labels.float())
            show("BM25", test, lexical[test], labels.float())
        module = FineTuningModule(task="reranking", pretrained=MODEL)
        trainer = bare_trainer(folder, max_epochs=1, callbacks=[Untrained(tests)])
        trainer.fit(module, datamodule=data_in(folder, "random"))
        small = copy.deepcopy(module.model)
        quantize_(small, "int8-dynamic")
        for title, model in (("trained", module.model), ("trained, `int8-dynamic`", small)):
            for test, data in tests.items():
                show(title, test, *scored(model, data))


if __name__ == "__main__":
    main()
