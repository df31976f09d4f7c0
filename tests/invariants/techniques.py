"""Every technique, made so that it acts within a run of 32 steps on a tiny BERT.

A new technique is one entry here; all files of this folder then test it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_compress.callbacks import (
    EncoderBlockSubstitution,
    HeadPruning,
    IterativeMagnitudePruning,
    LayerPruning,
    NeuronPruning,
    PostTrainingPruning,
    PostTrainingQuantization,
    QuantizationAwareTraining,
    StructuredPruning,
)
from lightning_compress.modules import DistillationModule, FineTuningModule, QATModule
from lightning_compress.quantization import QuantizationConfig

CONFIG: dict[str, Any] = {
    "model_type": "bert", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 16,
}  # fmt: skip
EPOCHS, STEPS = 4, 32


@dataclass(frozen=True)
class Technique:
    """How to make one.

    Args:
        callbacks: builds the callbacks.
        module: class of the module that is trained.
        options: of the module.
        pretrained: whether it starts from a trained model, not from random weights.
        during_training: whether the model is compressed while it trains, not at the end of ``fit``.
    """

    callbacks: Callable[[], list[L.Callback]] = list
    module: type[L.LightningModule] = FineTuningModule
    options: dict[str, Any] | None = None
    pretrained: bool = False
    during_training: bool = True

    def build(self, trained: Path, seed: int = 0) -> Any:
        """A module with random weights of that seed, or with those of the folder ``trained``."""
        torch.manual_seed(seed)
        source = {"pretrained": str(trained)} if self.pretrained else {"config": CONFIG}
        return self.module(learning_rate=1e-3, **source, **(self.options or {}))


TECHNIQUES: dict[str, Technique] = {
    "magnitude": Technique(lambda: [IterativeMagnitudePruning(sparsity=0.7)]),
    "magnitude 2:4": Technique(lambda: [IterativeMagnitudePruning(pattern="2:4", scope="layer")]),
    "magnitude, learning rate rewound": Technique(
        lambda: [IterativeMagnitudePruning(sparsity=0.7, rewind="learning_rate")]
    ),
    "magnitude, weights rewound": Technique(
        lambda: [IterativeMagnitudePruning(sparsity=0.7, rewind="weights")]
    ),
    "heads": Technique(lambda: [HeadPruning(removed_fraction=0.5, pruning_steps=3)]),
    "neurons": Technique(
        lambda: [NeuronPruning(removed_count=96, pruning_steps=2, score="activation", refit=True)]
    ),
    "heads and neurons": Technique(
        lambda: [StructuredPruning(removed_macs_fraction=0.5, pruning_steps=3, score="taylor")]
    ),
    "heads and neurons at random": Technique(
        lambda: [StructuredPruning(removed_macs_fraction=0.3, pruning_steps=2, score="random")]
    ),
    "layers": Technique(lambda: [LayerPruning(removed_count=2, pruning_steps=2)]),
    "substitution": Technique(
        lambda: [EncoderBlockSubstitution(layers_per_group=2, distil_steps=3)]
    ),
    "quantization-aware": Technique(
        lambda: [
            QuantizationAwareTraining(quantization=QuantizationConfig("int8-static"), start=0.3)
        ]
    ),
    "quantization-aware module": Technique(
        module=QATModule, options={"quantization": QuantizationConfig("int8-dynamic")}
    ),
    "distillation of a smaller self": Technique(
        lambda: [HeadPruning(removed_fraction=0.5, pruning_steps=2)],
        module=DistillationModule,
        options={"teacher": "dense"},
        pretrained=True,
    ),
    "pruned in three ways": Technique(
        lambda: [
            LayerPruning(removed_count=1),
            StructuredPruning(removed_macs_fraction=0.3, pruning_steps=2),
            IterativeMagnitudePruning(sparsity=0.5),
        ]
    ),
    "post-training pruning": Technique(
        lambda: [PostTrainingPruning(removed_macs_fraction=0.4)], during_training=False
    ),
    "post-training quantization": Technique(
        lambda: [PostTrainingQuantization(quantization=QuantizationConfig("int8-static"))],
        during_training=False,
    ),
    "post-training quantization, guarded": Technique(
        lambda: [
            PostTrainingQuantization(quantization=QuantizationConfig("int4-weight"), max_loss=100.0)
        ],
        during_training=False,
    ),
}

_VARIANTS = {
    "magnitude 2:4", "magnitude, learning rate rewound", "neurons", "heads and neurons",
    "heads and neurons at random", "quantization-aware module",
    "post-training quantization, guarded",
}  # fmt: skip
#: Names for parametrized tests; variants of another technique are slow ones.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in _VARIANTS else name for name in TECHNIQUES
]
