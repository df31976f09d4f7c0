"""Entities and their F1 against slow loops over the tags as text."""

import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_compress.data.entity_tags import are_entity_tags, completed
from lightning_compress.errors import InputError
from lightning_compress.tasks.entities import (
    EntityF1,
    EntityPrecision,
    EntityRecall,
)
from lightning_compress.types import IGNORE_INDEX

NAMES = ["O", "B-x", "I-x", "B-y", "I-y", "E-x", "S-x", "E-y", "S-y"]
Spans = set[tuple[int, int, int, str]]


def spans_of_iob2(sentence: int, tags: list[str]) -> Spans:
    """Entities of well-formed IOB2 tags, by a regular expression over their letters."""
    text = "".join("O" if tag == "O" else tag[0] for tag in tags)
    return {
        (sentence, found.start(), found.end(), tags[found.start()][2:])
        for found in re.finditer("BI*", text)
    }


def spans_by_conlleval(sentence: int, tags: list[str]) -> Spans:
    """Entities by the rules of ``conlleval``: where one ends and where one starts."""
    found: Spans = set()
    start = 0
    padded = ["O", *tags, "O"]
    for place, (before, now) in enumerate(pairwise(padded)):
        (one, *kind), (other, *next_kind) = before.split("-"), now.split("-")
        ends = one in ("E", "S") or (one in ("B", "I") and other in ("B", "S", "O"))
        ends |= one != "O" and kind != next_kind
        if ends and one != "O":
            found.add((sentence, start, place, kind[0]))
        starts = other in ("B", "S") or (one in ("E", "S", "O") and other in ("E", "I"))
        starts |= other != "O" and kind != next_kind
        if starts:
            start = place
    return found


def scores(
    spans: Callable[[int, list[str]], Spans], predictions: Tensor, targets: Tensor
) -> list[float]:
    """F1, precision and recall over sets of entities."""
    mine, theirs = set[tuple[int, int, int, str]](), set[tuple[int, int, int, str]]()
    for sentence, (found, expected) in enumerate(zip(predictions, targets, strict=True)):
        words = [place for place, tag in enumerate(expected.tolist()) if tag != IGNORE_INDEX]
        mine |= spans(sentence, [NAMES[int(found[place])] for place in words])
        theirs |= spans(sentence, [NAMES[int(expected[place])] for place in words])
    common = len(mine & theirs)
    precision, recall = common / max(len(mine), 1), common / max(len(theirs), 1)
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    return [f1, precision, recall]


def measured(batches: list[tuple[Tensor, Tensor]], names: list[str] = NAMES) -> list[float]:
    metrics = [EntityF1(names), EntityPrecision(names), EntityRecall(names)]
    for predictions, targets in batches:
        for metric in metrics:
            metric.update(predictions, targets)
    return [float(metric.compute()) for metric in metrics]


def test_any_tags_agree_with_conlleval() -> None:
    draw = random.Random(0)
    for tags in (3, 5, 9):
        for _ in range(40):
            shape = (3, draw.randint(1, 8))
            predictions, targets = torch.randint(tags, (2, *shape))
            targets[torch.rand(shape) < 0.3] = IGNORE_INDEX
            expected = scores(spans_by_conlleval, predictions, targets)
            assert measured([(predictions, targets)]) == pytest.approx(expected)


def test_well_formed_tags_are_what_a_reader_sees() -> None:
    texts = [
        "O B-x I-x I-x B-x B-y I-y O",
        "O B-x I-x O B-x O B-y I-y",
        "B-y I-y O O B-x B-x I-x O",
        "O O O O B-x B-y I-y O",
    ]
    targets = torch.tensor([[NAMES.index(tag) for tag in text.split()] for text in texts])
    predictions = targets.roll(1, 0)
    assert measured([(targets, targets)]) == [1, 1, 1]
    expected = scores(spans_of_iob2, predictions, targets)
    assert measured([(predictions, targets)]) == pytest.approx(expected)


def test_an_entity_of_the_right_words_and_the_wrong_type_is_wrong() -> None:
    predictions, targets = torch.tensor([[1, 2, 0, 3]]), torch.tensor([[3, 4, 0, 3]])
    assert measured([(predictions, targets)]) == [0.5, 0.5, 0.5]


def test_bilou_is_iobes_with_other_letters() -> None:
    others = [name.replace("E-", "L-").replace("S-", "U-") for name in NAMES]
    batch = [(torch.randint(9, (4, 6)), torch.randint(9, (4, 6)))]
    assert measured(batch, others) == measured(batch)


def test_tags_that_training_data_lack_are_added() -> None:
    assert completed(["B-x", "O", "B-y", "I-y"]) == ["B-x", "B-y", "I-x", "I-y", "O"]
    assert completed(["S-x", "B-y", "E-y"]) == [
        "B-x", "B-y", "E-x", "E-y", "I-x", "I-y", "O", "S-x", "S-y",
    ]  # fmt: skip
    assert completed(["I-x"]) == ["I-x", "O"]
    assert completed(["VERB", "O", "B-x"]) == ["VERB", "O", "B-x"]


def test_which_tags_are_those_of_entities() -> None:
    assert are_entity_tags(NAMES)
    assert are_entity_tags(["B-x", "I-x"])
    for names in (["NOUN", "VERB", "O"], ["LABEL_0", "LABEL_1"], ["O"], [], None):
        assert not are_entity_tags(names)
    with pytest.raises(InputError, match="entities need tags"):
        EntityF1(["NOUN"])


SCRIPT = """
import sys
import torch
from pathlib import Path
from torch import distributed
from lightning_compress.tasks.entities import EntityF1

def run(rank, folder):
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    predictions, targets = torch.load(f"{folder}/tags.pt")
    metric = EntityF1(["O", "B-x", "I-x", "B-y", "I-y", "E-x", "S-x", "E-y", "S-y"])
    metric.update(predictions[rank::2], targets[rank::2])
    Path(f"{folder}/{rank}").write_text(str(float(metric.compute())))

if __name__ == "__main__":
    torch.multiprocessing.spawn(run, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_two_processes_count_all_entities(run_script: Callable[..., str], tmp_path: Path) -> None:
    predictions, targets = torch.randint(5, (2, 10, 6))
    torch.save((predictions, targets), tmp_path / "tags.pt")
    run_script(SCRIPT)
    (whole, *_) = measured([(predictions, targets)])
    assert [float((tmp_path / rank).read_text()) for rank in "01"] == pytest.approx([whole] * 2)
