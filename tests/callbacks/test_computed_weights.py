"""Parametrizations and torch's own pruning masks: refused before training starts."""

import pytest
from torch.nn.utils import parametrizations, prune

from lightning_compress.callbacks import (
    HeadPruning,
    IterativeMagnitudePruning,
    NeuronPruning,
    PostTrainingPruning,
    StructuredPruning,
)
from lightning_compress.compression_state import compression_state
from lightning_compress.errors import InputError
from lightning_compress.models import remove_neurons_

from .conftest import Foreign

LAYERS = ("intermediate.dense", "attention.self.key")
CHANGES = {
    "weight_norm": parametrizations.weight_norm,
    "mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.fixture(params=CHANGES)
def module(request):
    module = Foreign()
    for name in LAYERS:
        CHANGES[request.param](module.net.bert.encoder.layer[0].get_submodule(name))
    return module


@pytest.mark.parametrize(
    "callback",
    [
        IterativeMagnitudePruning(sparsity=0.5),
        HeadPruning(removed_fraction=0.5),
        NeuronPruning(removed_fraction=0.5),
        StructuredPruning(removed_macs_fraction=0.5),
        PostTrainingPruning(removed_macs_fraction=0.5),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_pruning_is_refused_before_training(module, toy_data, quiet_trainer, callback):
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback])
    message = r"bert.encoder.layer.0.*: its weight is computed .*remove_parametrizations, "
    with pytest.raises(InputError, match=message):
        trainer.fit(module, toy_data)
    assert trainer.fit_loop.total_batch_idx == -1


def test_neurons_of_other_layers_can_be_removed(module):
    remove_neurons_(module.net, {1: [0]})
    assert module.net.bert.encoder.layer[1].intermediate.dense.out_features == 63
    with pytest.raises(InputError, match=r"dense: its weight is computed"):
        remove_neurons_(module.net, {0: [0]})
    assert compression_state(module.net)["sizes"]
