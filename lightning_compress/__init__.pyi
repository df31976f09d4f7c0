from lightning_compress.compression_state import (
    restore_from_checkpoint_ as restore_from_checkpoint_,
)
from lightning_compress.distillation.objective import Losses as Losses
from lightning_compress.errors import InputError as InputError
from lightning_compress.evaluation import BenchmarkSettings as BenchmarkSettings
from lightning_compress.evaluation import benchmark as benchmark
from lightning_compress.evaluation import measure_footprint as measure_footprint
from lightning_compress.evaluation import measure_latency as measure_latency
from lightning_compress.export import ExportOptions as ExportOptions
from lightning_compress.export import export_model as export_model
from lightning_compress.models import remove_heads_ as remove_heads_
from lightning_compress.models import remove_layers_ as remove_layers_
from lightning_compress.models import remove_neurons_ as remove_neurons_
from lightning_compress.models import set_masks_ as set_masks_
from lightning_compress.models import structure_of as structure_of
from lightning_compress.models.calibration import Calibration as Calibration
from lightning_compress.pruning.magnitude import magnitude_masks as magnitude_masks
from lightning_compress.quantization import QuantizationConfig as QuantizationConfig
from lightning_compress.quantization import quantize_ as quantize_
from lightning_compress.saving import load_compressed as load_compressed
from lightning_compress.saving import save_compressed as save_compressed
from lightning_compress.substitution.edit import substitute_layers_ as substitute_layers_
from lightning_compress.tasks import Task as Task
from lightning_compress.types import Batch as Batch
