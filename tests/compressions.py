"""One callback of each kind that compresses a model of four layers, for the tests of tasks."""

from collections.abc import Callable

import lightning as L

from lightning_compress.callbacks import (
    EncoderBlockSubstitution,
    IterativeMagnitudePruning,
    LayerPruning,
    PostTrainingPruning,
    PostTrainingQuantization,
    QuantizationAwareTraining,
    StructuredPruning,
)
from lightning_compress.quantization import QuantizationConfig

COMPRESSIONS: dict[str, Callable[[], L.Callback]] = {
    "magnitude": lambda: IterativeMagnitudePruning(sparsity=0.5),
    "structured": lambda: StructuredPruning(removed_macs_fraction=0.3, score="taylor"),
    "layers": lambda: LayerPruning(removed_count=1),
    "after training": lambda: PostTrainingPruning(removed_macs_fraction=0.2),
    "substitution": lambda: EncoderBlockSubstitution(layers_per_group=2, distil_steps=3),
    "quantization": lambda: PostTrainingQuantization(
        quantization=QuantizationConfig("int8-static"), max_loss=90.0
    ),
    "quantization-aware": lambda: QuantizationAwareTraining(
        quantization=QuantizationConfig("int8-static"), start=0.3
    ),
}
