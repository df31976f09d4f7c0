"""Scores that order the documents of queries: metrics by independent references, loss, baseline."""

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from torch import Tensor
from torch.nn import functional
from transformers import BertForSequenceClassification

from lightning_compress.distillation.teacher import LiveTeacher
from lightning_compress.errors import InputError
from lightning_compress.modules.teacher_setup import evaluate_teacher
from lightning_compress.tasks import declare_task_, task_named, task_of
from lightning_compress.tasks.ranking import LuckyDCG, NormalizedDCG, ReciprocalRank

from ..families import tiny_model

TASK = task_named("reranking")
GRADES = [0.0, 0.0, 0.0, 0.25, 0.5, 1.0]


def rows(kind: str) -> tuple[Tensor, Tensor]:
    """Scores [300, 1] and labels [300, 2] of queries with 2 to 25 documents; some have no order."""
    draw = np.random.default_rng(3)
    sizes = [2, 5, 10, 11, 25, 1, 3, *draw.integers(2, 20, size=40)]
    numbers = np.repeat(np.arange(len(sizes)) * 7, sizes)
    relevance = draw.choice(GRADES, size=len(numbers))
    relevance[numbers == 21] = 0  # a query without a relevant document
    scores = draw.normal(size=len(numbers))
    if kind == "ties":
        scores = scores.round()
    if kind == "one score":
        scores[:] = -3.5
    labels = np.stack([numbers, relevance], axis=1)
    return torch.tensor(scores)[:, None].float(), torch.tensor(labels).float()


def by_query(scores: Tensor, labels: Tensor) -> list[tuple[Any, Any]]:
    return [
        (
            scores[labels[:, 0] == query, 0].double().numpy(),
            labels[labels[:, 0] == query, 1].numpy(),
        )
        for query in labels[:, 0].unique()
    ]


def reciprocal_rank(scores: Any, relevance: Any, draws: int = 4000) -> float:
    """Of the first document of at least 0.5, within 10; the mean over random orders of ties."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(draws if len(set(scores)) < len(scores) else 1):
        order = np.lexsort([draw.random(len(scores)), -scores])
        ranks = np.flatnonzero(relevance[order] >= 0.5) + 1
        found.append(1 / ranks[0] if ranks[0] <= 10 else 0.0)
    return float(np.mean(found))


def measured(scores: Tensor, labels: Tensor, sizes: int) -> dict[str, float]:
    metrics = TASK.metrics(1)
    for one, other in zip(scores.split(sizes), labels.split(sizes), strict=True):
        metrics.update(*TASK.predictions_and_targets(one, other))
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.mark.parametrize("kind", ["different scores", "ties", "one score"])
def test_metrics_are_those_of_references_in_any_batches(kind: str) -> None:
    scores, labels = rows(kind)
    queries = [one for one in by_query(scores, labels) if one[1].any()]
    several = [one for one in queries if len(one[0]) > 1]
    expected = [ndcg_score([relevance], [mine], k=10) for mine, relevance in several]
    expected += [1.0] * (len(queries) - len(several))  # scikit-learn refuses single documents
    ranks = [reciprocal_rank(*one) for one in queries if (one[1] >= 0.5).any()]
    found = measured(scores, labels, len(scores))
    assert found["ndcg_at_10"] == pytest.approx(np.mean(expected), abs=1e-5)
    tolerance = 1e-6 if kind == "different scores" else 0.005
    assert found["mrr_at_10"] == pytest.approx(np.mean(ranks), abs=tolerance)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
    assert measured(scores[order], labels[order], 7) == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(("tied", "good", "before"), [(2, 1, 0), (4, 2, 1), (6, 3, 2), (5, 1, 8)])
def test_a_tie_is_the_mean_of_all_its_orders(tied: int, good: int, before: int) -> None:
    scores = torch.tensor([1.0] * before + [0.0] * tied + [-1.0])
    relevance = [0.0] * before + [1.0] * good + [0.0] * (tied - good) + [1.0]
    firsts = [before + 1 + order.index(1.0) for order in permutations(relevance[before:-1])]
    metric = ReciprocalRank()
    metric.update(scores, torch.tensor([[3.0, one] for one in relevance]))
    assert float(metric.compute()) == pytest.approx(
        np.mean([1 / rank if rank <= 10 else 0 for rank in firsts])
    )


def test_rows_without_a_relevance_do_not_count() -> None:
    scores, labels = rows("different scores")
    missing = torch.cat([labels[:20, :1], torch.full((20, 1), torch.nan)], dim=1)
    found = measured(torch.cat([scores, scores[:20] + 5]), torch.cat([labels, missing]), 16)
    assert found == pytest.approx(measured(scores, labels, 16))
    assert np.isnan(measured(scores[:20], missing, 4)["ndcg_at_10"])


def test_the_loss_is_the_cross_entropy_of_labelled_pairs() -> None:
    logits = torch.tensor([[2.0], [-1.0], [0.5]], requires_grad=True)
    labels = torch.tensor([[0, 1.0], [0, 0.25], [1, torch.nan]])
    expected = [-np.log(1 / (1 + np.exp(-2))),
                -(0.25 * np.log(1 / (1 + np.e)) + 0.75 * np.log(1 / (1 + 1 / np.e)))]  # fmt: skip
    assert TASK.loss(logits, labels).item() == pytest.approx(np.mean(expected), rel=1e-6)
    weighted = TASK.weighted_loss(torch.tensor([4.0]))(logits, labels[[0, 1, 1]])
    reference = functional.binary_cross_entropy_with_logits(
        logits[:, 0], labels[[0, 1, 1], 1], pos_weight=torch.tensor(4.0)
    )
    assert weighted.item() == pytest.approx(reference.item())
    none = TASK.loss(logits, labels[[2, 2, 2]])
    none.backward()
    assert (none.item(), logits.grad.abs().sum().item()) == (0, 0)  # type: ignore[union-attr]


def test_luck_is_a_random_order_and_two_standard_errors() -> None:
    _, labels = rows("different scores")
    lucky = LuckyDCG()
    for part in labels.split(13):
        lucky.update(part)
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(300):
        metric = NormalizedDCG()
        metric.update(torch.rand(len(labels), generator=draw), labels)
        found.append(float(metric.compute()))
    values = lucky.values()
    mean = float(values.mean())
    assert mean == pytest.approx(np.mean(found), abs=0.01)
    bound = float(lucky.compute())
    assert bound == pytest.approx(mean + 2 * (mean * (1 - mean) / len(values)) ** 0.5)
    assert np.mean(np.array(found) > bound) < 0.025


@pytest.mark.parametrize("seed", range(3))
def test_a_random_teacher_is_stopped(seed: int, quiet_trainer: Any) -> None:
    torch.manual_seed(seed)
    config: Any = tiny_model("bert", num_labels=1).config
    model: Any = BertForSequenceClassification(config).eval()
    declare_task_(model, ["reranking"])
    assert task_of(model) is TASK
    numbers = torch.arange(400) // 5
    batches = [
        {"input_ids": torch.randint(5, 100, (50, 8)),
         "labels": torch.stack([one, one.new_tensor(range(50)) % 5 == 0], dim=1).float()}
        for one in numbers.split(50)
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"its ndcg_at_10 is .* on 400 validation examples, where"):
        evaluate_teacher(LiveTeacher(model), batches, quiet_trainer())
    for batch in batches:  # and one that knows is not
        with torch.no_grad():
            order = model(batch["input_ids"]).logits[:, 0].view(10, 5).argsort(1).argsort(1)
        batch["labels"][:, 1] = (order == 4).flatten().float()
    assert evaluate_teacher(LiveTeacher(model), batches, quiet_trainer())["ndcg_at_10"] == 1


def test_a_model_with_several_outputs_is_refused() -> None:
    with pytest.raises(InputError, match=r"3 outputs and a reranker has one.*model\.num_labels: 1"):
        TASK.metrics(3)


SCRIPT = """
import sys
import torch
from pathlib import Path
from torch import distributed
from lightning_compress.tasks import task_named
from lightning_compress.tasks.ranking import LuckyDCG

def run(rank, folder):
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    scores, labels = torch.load(f"{folder}/rows.pt")
    metrics, lucky = task_named("reranking").metrics(1), LuckyDCG()
    mine, theirs = scores[rank::2, 0], labels[rank::2]
    for one, other in zip(mine.split(40 if rank else 1000), theirs.split(40 if rank else 1000)):
        metrics.update(one, other)
        lucky.update(other)
    found = [*metrics.compute().values(), lucky.compute()]
    torch.save([float(one) for one in found], f"{folder}/{rank}.pt")

if __name__ == "__main__":
    torch.multiprocessing.spawn(run, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_two_processes_share_the_rows_of_queries(
    run_script: Callable[..., str], tmp_path: Path
) -> None:
    scores, labels = rows("ties")
    torch.save((scores, labels), tmp_path / "rows.pt")
    run_script(SCRIPT)
    alone, lucky = measured(scores, labels, 50), LuckyDCG()
    lucky.update(labels)
    expected = [*alone.values(), float(lucky.compute())]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, abs=1e-6)
