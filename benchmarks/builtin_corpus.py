"""What the built-in corpus asks for: a bag of words loses to a small transformer.

    python benchmarks/builtin_corpus.py [--vocabulary]

Prints the test accuracy of logistic regressions on words and on pairs of words, whose strength of
regularisation is chosen on validation rows. What a small transformer reaches, dense and pruned too
far, comes from the recipe itself:

    lightning-compress fit --config configs/quickstart.yaml
    lightning-compress fit --config configs/quickstart.yaml --trainer.callbacks.sparsity 0.99

With --vocabulary it trains the corpus's WordPiece vocabulary anew and writes it to its file.
"""

import argparse
import string

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegressionCV
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from lightning_compress.data.corpus import VOCABULARY, builtin_corpus, builtin_tokenizer


def write_vocabulary(texts):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=1000, special_tokens=[*special, *letters], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab()
    VOCABULARY.write_text("\n".join(sorted(ids, key=ids.__getitem__)) + "\n")


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", action="store_true", help="train and write it")
    arguments = parser.parse_args()
    corpus = builtin_corpus()
    if arguments.vocabulary:
        write_vocabulary(corpus["train"]["text"])
    tokens = [len(ids) for ids in builtin_tokenizer()(list(corpus["train"]["text"]))["input_ids"]]
    rows = {name: split.num_rows for name, split in corpus.items()}
    print(f"{rows}, tokens: median {np.median(tokens):.0f}, 95 % {np.quantile(tokens, 0.95):.0f}")
    for longest, name in ((1, "words"), (2, "words and pairs of them")):
        accuracy = bag_of_words(corpus, longest)
        error = (accuracy * (1 - accuracy) / rows["test"]) ** 0.5
        print(f"logistic regression on {name}: {accuracy:.1%} ± {error:.1%}")


if __name__ == "__main__":
    main()
