import re
from random import Random

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from lightning_compress.data import corpus_words as words
from lightning_compress.data.corpus import builtin_corpus, builtin_tokenizer
from lightning_compress.data.corpus_grammar import (
    CONTRASTS,
    COORDINATIONS,
    ECHOES,
    NEGATED,
    OUT_OF_SCOPE,
    STRAIGHT,
    STRONG,
    WEAK,
    Frame,
    Opinion,
    Verdict,
    draw_opinion,
    write_pair,
)


@pytest.fixture(scope="module")
def corpus():
    return builtin_corpus()


def test_sizes_balance_and_disjoint_splits(corpus):
    assert {name: split.num_rows for name, split in corpus.items()} == {
        "train": 12000,
        "test": 2000,
    }
    texts = [*corpus["train"]["text"], *corpus["test"]["text"]]
    assert len(set(texts)) == len(texts)
    for split in corpus.values():
        assert sum(split["label"]) == split.num_rows // 2
        assert split.features["label"].names == ["negative", "positive"]


def test_the_seed_decides(corpus):
    again, other = builtin_corpus(seed=0), builtin_corpus(seed=1)
    assert list(again["test"]["text"]) == list(corpus["test"]["text"])
    assert len(set(other["test"]["text"]) & set(corpus["test"]["text"])) < 200


def test_a_bag_of_words_is_far_from_enough(corpus):
    count = CountVectorizer(token_pattern=r"\S+")
    train = count.fit_transform(corpus["train"]["text"])
    model = LogisticRegression(max_iter=500).fit(train, corpus["train"]["label"])
    accuracy = model.score(count.transform(corpus["test"]["text"]), corpus["test"]["label"])
    assert 0.5 < accuracy < 0.7


def test_the_tokenizer_knows_every_word_and_reloads(corpus, tmp_path):
    tokenizer = builtin_tokenizer()
    texts = [*corpus["test"]["text"], *builtin_corpus(seed=7)["test"]["text"]]
    encoded = tokenizer(texts)["input_ids"]
    assert all(tokenizer.unk_token_id not in ids for ids in encoded)
    lengths = sorted(len(ids) for ids in encoded)
    assert 8 <= lengths[len(lengths) // 2] <= 30
    assert lengths[-1] <= 64  # nothing is cut off in the quickstart
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == encoded
    assert tokenizer.pad_token_id == 0
    assert encoded[0][0] == tokenizer.cls_token_id


def opinion(template, praise, frames):
    """The opinion in one frame that praises or blames, with the first words of its lexicon."""
    frame = next(frame for frame in frames if frame.template == template)
    drawn = draw_opinion(Random(0), frame, "the plot")
    return drawn if drawn.polarity == praise else drawn.turned()


@pytest.mark.parametrize(
    ("template", "frames"),
    [
        ("{x} was {w}", STRAIGHT),
        ("{x} was not {w}", NEGATED),
        ("there was nothing {w} about {x}", NEGATED),
        ("nobody can deny that {x} was {w}", OUT_OF_SCOPE),
        ("{who} called {x} {w}, but I disagree", ECHOES),
    ],
)
@pytest.mark.parametrize("praise", [0, 1])
def test_negation_turns_a_word_round_only_in_its_scope(template, frames, praise):
    frame: Frame = next(frame for frame in frames if frame.template == template)
    text = opinion(template, praise, frames).text()
    used = [side for side in (0, 1) for word in words.ADJECTIVES[side] if word in text.split()]
    used += [s for s in (0, 1) for w in words.ADJECTIVES[s] if re.search(rf"\b{w}\b,", text)]
    assert used == [1 - praise if frame.turns else praise]


@pytest.mark.parametrize("connective", CONTRASTS)
def test_the_main_clause_decides_unless_it_is_only_diminished(connective):
    praise = opinion("{x} was {w}", 1, STRAIGHT)
    blame = opinion("{x} was {w}", 0, STRAIGHT)
    assert Verdict(praise, connective, blame).decisive is praise
    assert Verdict(blame, connective, praise).decisive is blame
    faint = opinion("{x} was {dim} {w}", 0, STRAIGHT)
    assert faint.frame.strength == WEAK
    assert Verdict(faint, connective, praise).decisive is praise


def test_side_by_side_the_more_intense_opinion_decides():
    praise = opinion("{x} was {int} {w}", 1, STRAIGHT)
    blame = opinion("{x} was {w}", 0, STRAIGHT)
    assert praise.frame.strength == STRONG
    for connective in COORDINATIONS:
        assert Verdict(blame, connective, praise).decisive is praise
        assert Verdict(praise, connective, blame).decisive is praise


def test_turning_the_decisive_clause_turns_the_label_and_the_pair_shows_it():
    drawn: Opinion = opinion("{x} was not {w}", 0, NEGATED)
    assert Verdict(drawn).decisive.polarity == 0
    assert Verdict(drawn).turned().decisive.polarity == 1
    random = Random(5)
    for _ in range(200):
        negative, positive = write_pair(random)
        assert negative != positive
        assert negative.count(".") == positive.count(".")


def test_opposite_words_share_an_index():
    for lexicon in (words.ADJECTIVES, words.MOVES, words.LIKES, words.NOUNS):
        assert len(lexicon[0]) == len(lexicon[1])
        assert not set(lexicon[0]) & set(lexicon[1])
