"""Lightning callbacks that compress and measure, one per file: ``lightning_compress.callbacks``."""

from .compression_benchmark import CompressionBenchmark
from .encoder_block_substitution import EncoderBlockSubstitution
from .head_pruning import HeadPruning
from .layer_pruning import LayerPruning
from .magnitude_pruning import IterativeMagnitudePruning
from .neuron_pruning import NeuronPruning
from .post_training_pruning import PostTrainingPruning
from .post_training_quantization import PostTrainingQuantization
from .quantization_aware_training import QuantizationAwareTraining
from .run_safety import RunSafety
from .structured_pruning import StructuredPruning

__all__ = [
    "CompressionBenchmark",
    "EncoderBlockSubstitution",
    "HeadPruning",
    "IterativeMagnitudePruning",
    "LayerPruning",
    "NeuronPruning",
    "PostTrainingPruning",
    "PostTrainingQuantization",
    "QuantizationAwareTraining",
    "RunSafety",
    "StructuredPruning",
]
