"""What units of a model that gives embeddings are scored by."""

import torch
from transformers import BertModel

from lightning_compress.callbacks.calibration_batches import as_calibration
from lightning_compress.models import units_of
from lightning_compress.models.forward import logits_in
from lightning_compress.pruning.gate_gradients import gated
from lightning_compress.pruning.importance import fisher_scores
from lightning_compress.tasks import declare_task_

from ..families import randomize_, tiny_config


def test_fisher_scores_are_how_far_units_move_the_embedding() -> None:
    model = BertModel._from_config(tiny_config("bert")).eval().double()
    randomize_(model)
    declare_task_(model, ["sentence-similarity"])
    units = units_of(model, "heads")
    torch.manual_seed(0)
    ids = torch.randint(5, 90, (1, 10)).expand(512, 10)  # one text, against as many random vectors
    batch = {"input_ids": ids, "labels": torch.full((512, 2), torch.nan)}
    found = fisher_scores(model, units, as_calibration(model, [batch]))

    for one in units:

        def embedding(gate: torch.Tensor, name: str = one.output) -> torch.Tensor:
            with gated(model, {name: gate}):
                inputs = {"input_ids": ids[:1]}
                return logits_in(model(**inputs), model, inputs)[0]

        jacobian = torch.autograd.functional.jacobian(embedding, torch.ones(one.count).double())
        expected = jacobian.square().sum(0)
        assert torch.allclose(found[one.output], expected, rtol=0.35)
