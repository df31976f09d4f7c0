"""Words with tags and questions with contexts out of the real data: the published counts."""

from pathlib import Path

import pytest
import torch

from lightning_compress.data import QuestionAnsweringDataModule, TokenClassificationDataModule
from lightning_compress.tasks.answers import AnswerExactMatch
from lightning_compress.tasks.entities import EntityRecall

pytestmark = pytest.mark.real


def test_wnut_17_has_its_sentences_words_and_entities(shared: Path, tmp_path: Path) -> None:
    data = TokenClassificationDataModule(
        path=str(shared / "data" / "wnut17"),
        tokenizer=str(shared / "models" / "tokenizers" / "roberta-base"),
        max_length=512,
        cache_dir=str(tmp_path),
    )
    data.setup("fit")
    data.setup("test")
    assert data.label_names is not None
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    found = []
    for loader in loaders:
        metric, sentences, words = EntityRecall(data.label_names), 0, 0
        for batch in loader:
            metric.update(batch["labels"].clamp(min=0), batch["labels"])
            sentences += len(batch["labels"])
            words += int((batch["labels"] >= 0).sum())
        found.append((sentences, words, int(metric.actual)))
    # Derczynski et al. 2017, https://aclanthology.org/W17-4418, table 1
    assert found == [(3394, 62730, 1975), (1009, 15733, 836), (1287, 23394, 1079)]


def test_squad_has_its_questions_and_its_answers_are_right(shared: Path, tmp_path: Path) -> None:
    data = QuestionAnsweringDataModule(
        path=str(shared / "data" / "squad" / "dev-v1.1.json.gz"),
        tokenizer=str(shared / "models" / "tokenizers" / "bert-base-uncased"),
        max_length=384,
        overlap=128,
        batch_size=256,
        cache_dir=str(tmp_path),
    )
    data.setup("test")
    metric = AnswerExactMatch()
    for batch in data.test_dataloader():
        positions = batch["labels"][:, 0, :2].long()
        logits = torch.zeros(*batch["input_ids"].shape, 2)
        inside = positions[:, 1] > 0  # where the answer is not in the window, nothing is sure
        rows = inside.nonzero()[:, 0]
        for side in (0, 1):
            logits[rows, positions[inside, side], side] = 9.0
        metric.update(logits, batch["labels"])
    right = float(metric.compute())
    assert len(torch.cat(metric.windows)[:, 0].unique()) == 10570
    assert right > 0.98  # some answers are parts of tokens, some longer than is looked for
