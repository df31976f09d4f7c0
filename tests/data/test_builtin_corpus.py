import re
import runpy
from pathlib import Path
from random import Random

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from lightning_compress.data.builtin import words as words
from lightning_compress.data.builtin.corpus import (
    CONTRASTS,
    COORDINATIONS,
    VOCABULARY,
    Opinion,
    Verdict,
    builtin_corpus,
    builtin_tokenizer,
    draw_opinion,
    write_pair,
)
from lightning_compress.data.builtin.frames import (
    ECHOES,
    NEGATED,
    OUT_OF_SCOPE,
    PARTICIPLES,
    STRAIGHT,
    STRONG,
    WEAK,
    Frame,
)

# What a reader makes of one sentence of nearly every kind: 1 is praise, 0 is blame.
READ = {
    "the plot was great": 1,
    "the plot was utterly great": 1,
    "the plot was a bit terrible": 0,
    "the plot annoyed me": 0,
    "I truly liked the plot": 1,
    "the plot was a mess": 0,
    "the plot was not great": 0,
    "the plot was not terrible": 1,
    "the plot was never terrible": 1,
    "the plot was hardly great": 0,
    "the plot was far from terrible": 1,
    "I would not call the plot great": 0,
    "nobody could call the plot terrible": 1,
    "I do not think that the plot was great": 0,
    "the plot was anything but great": 0,
    "there was nothing terrible about the plot": 1,
    "the plot was not exactly great": 0,
    "the plot did not annoy me at all": 1,
    "I did not like the plot": 0,
    "I never disliked the plot": 1,
    "I would not call the plot a triumph": 0,
    "the plot was not only terrible but also awful": 0,
    "the plot was great, not terrible": 1,
    "the plot was not terrible but great": 1,
    "the plot was terrible rather than great": 0,
    "far from being great, the plot was terrible": 0,
    "nobody can deny that the plot was terrible": 0,
    "there is no doubt that the plot was great": 1,
    "the plot never failed to be great": 1,
    "I did not only like the plot": 1,
    "my wife called the plot great, and I agree": 1,
    "my wife called the plot great, but I disagree": 0,
    "my wife found the plot terrible, but I did not": 1,
    "I expected the plot to be great, but it was not": 0,
    "I expected the plot to be terrible, and so it was": 0,
    "the plot being great": 1,
    "the plot not being terrible": 1,
    "the plot not being great at all": 0,
}


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


def test_the_shipped_vocabulary_is_what_the_corpus_gives(corpus):
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "builtin_corpus.py"))
    vocabulary = VOCABULARY.read_text().splitlines()
    assert vocabulary == benchmark["train_vocabulary"](corpus["train"]["text"])
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(vocabulary) <= 1000


def test_opinions_say_what_a_reader_makes_of_them():
    adverbs = {"int": "utterly", "dim": "a bit", "vint": "truly", "vdim": "mildly"}
    filled = (*adverbs.items(), ("who", "my wife"))
    found = {}
    for frame in (*STRAIGHT, *NEGATED, *OUT_OF_SCOPE, *ECHOES, *PARTICIPLES):
        for praise in (0, 1):
            one = Opinion(frame, praise, "the plot", index=1, second=2, adverbs=filled)
            found[one.text()] = praise
    assert {text: found.get(text) for text in READ} == READ


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
