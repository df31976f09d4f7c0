"""What the built-in corpus asks for: words alone are not enough, nor is a model pruned too far.

    python benchmarks/builtin_corpus.py [--levels 0 0.8 0.98 0.99] [--seeds 0] [--vocabulary]

Prints the test accuracy of logistic regressions on words and on pairs of words, whose strength of
regularisation is chosen on validation rows, and of the small transformer of
configs/quickstart.yaml, pruned to each level by that recipe. Level 0 trains for as many steps and
prunes nothing. Runs go to logs/; one whose report is there is not run again. The checkpoint is the
best one on rows carved from the training split, so nothing is chosen on the test split.

With --vocabulary it trains the corpus's WordPiece vocabulary anew and writes it to its file.
"""

import argparse
import json
import statistics
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegressionCV
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from lightning_compress.data.builtin.corpus import (
    VOCABULARY,
    builtin_corpus,
    builtin_tokenizer,
)

# Only accuracies are asked for: measure the speed as shortly as can be.
BRIEFLY = {"runtimes": ["eager"], "precisions": ["fp32"], "latency_examples": 20, "seconds": 0.2}


def train_vocabulary(texts, size=1000):
    """At most ``size`` word pieces of the texts by their ids, the same every time."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Letters inside a word get their ids in the order of a hash table, and ties between merges
    # go by id: naming the letters beforehand makes both the same in every process.
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*special, *letters], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids: dict[str, int] = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def bag_of_words(corpus, longest):
    count = CountVectorizer(ngram_range=(1, longest), token_pattern=r"\S+")
    train = count.fit_transform(corpus["train"]["text"])
    test = count.transform(corpus["test"]["text"])
    model = LogisticRegressionCV(
        Cs=[0.01, 0.1, 1.0, 10.0],
        l1_ratios=(0.0,),
        cv=5,
        max_iter=1000,
        scoring="accuracy",
        use_legacy_attributes=False,
    )
    model.fit(train, corpus["train"]["label"])
    return (model.predict(test) == np.array(corpus["test"]["label"])).mean()


def transformer(level, seed):
    """Test accuracy of the quickstart's model, pruned to a level."""
    name = f"builtin_corpus-{level}-seed{seed}"
    folder = Path("logs") / name / "version_0"
    if not (folder / "report.json").is_file():
        recipe = yaml.safe_load(Path("configs/quickstart.yaml").read_text())
        changes = {
            "IterativeMagnitudePruning": {"sparsity": level},
            "CompressionBenchmark": BRIEFLY,
        }
        for callback in recipe["trainer"]["callbacks"]:
            kind = callback["class_path"].rpartition(".")[2]
            callback["init_args"] |= changes.get(kind, {})
        recipe["trainer"]["enable_progress_bar"] = False
        config = Path("logs") / f"{name}.yaml"
        config.parent.mkdir(exist_ok=True)
        config.write_text(yaml.safe_dump(recipe))
        command = [
            *(sys.executable, "-c", "from lightning_compress.cli.main import main; main()", "fit"),
            *("--config", str(config), "--seed_everything", str(seed), "--data.seed", str(seed)),
            *("--trainer.logger.name", name, "--trainer.logger.version", "0"),
        ]
        print(f"running {name}", flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "report.json").read_text())["rows"][-1]["metrics"]["accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", nargs="*", type=float, default=[0.0, 0.8, 0.98, 0.99])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--vocabulary", action="store_true", help="train and write it")
    arguments = parser.parse_args()
    corpus = builtin_corpus()
    if arguments.vocabulary:
        pieces = train_vocabulary(corpus["train"]["text"])
        VOCABULARY.write_text("".join(f"{piece}\n" for piece in pieces))
    tokens = [len(ids) for ids in builtin_tokenizer()(list(corpus["train"]["text"]))["input_ids"]]
    rows = {name: split.num_rows for name, split in corpus.items()}
    print(f"{rows}, tokens: median {np.median(tokens):.0f}, 95 % {np.quantile(tokens, 0.95):.0f}")
    for longest, name in ((1, "words"), (2, "words and pairs of them")):
        accuracy = bag_of_words(corpus, longest)
        error = (accuracy * (1 - accuracy) / rows["test"]) ** 0.5
        print(f"logistic regression on {name}: {accuracy:.1%} ± {error:.1%}", flush=True)
    for level in arguments.levels:
        found = [transformer(level, seed) for seed in arguments.seeds]
        each = ", ".join(f"{accuracy:.1%}" for accuracy in found)
        print(f"transformer at {level:.0%}: {statistics.mean(found):.1%} ({each})", flush=True)


if __name__ == "__main__":
    main()
