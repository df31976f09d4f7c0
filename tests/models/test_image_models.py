"""ViT and DeiT: functions, callbacks and the benchmark work on images."""

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification

from lightning_compress import load_compressed, quantize_, save_compressed
from lightning_compress.callbacks import (
    CompressionBenchmark,
    EncoderBlockSubstitution,
    HeadPruning,
    IterativeMagnitudePruning,
    LayerPruning,
    NeuronPruning,
    PostTrainingPruning,
    PostTrainingQuantization,
)
from lightning_compress.distillation.attention import AttentionMaps, Relations
from lightning_compress.distillation.hidden_states import Embeddings, HiddenStates
from lightning_compress.distillation.objective import Losses
from lightning_compress.distillation.outputs import RequestedOutputs, run_with_outputs
from lightning_compress.distillation.soft_targets import SoftTargets
from lightning_compress.export import ExportOptions
from lightning_compress.export.format import for_images
from lightning_compress.export.formats import FORMATS
from lightning_compress.export.tensorrt import build_command
from lightning_compress.models import (
    manifest_of,
    remove_heads_,
    remove_layers_,
    remove_neurons_,
    set_masks_,
    units_of,
)
from lightning_compress.models.layers import skipped
from lightning_compress.models.structure import structure_of
from lightning_compress.modules import DistillationModule, FineTuningModule, QATModule
from lightning_compress.pruning.gate_gradients import gated
from lightning_compress.quantization import QuantizationConfig
from lightning_compress.substitution.edit import substitute_layers_
from lightning_compress.tasks import task_of

from ..families import IMAGES, randomize_, tiny_model, tiny_options

HEADS, NEURONS = {0: [1, 3], 1: [0]}, {0: [0, 5, 63], 1: list(range(1, 64, 2))}
PIXELS = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def logits(model: Any, pixels: Tensor = PIXELS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(pixel_values=pixels.to(model.dtype)).logits
    return found


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_gated_and_skipped_is_what_is_removed(name: str) -> None:
    model = randomize_(tiny_model(name, num_hidden_layers=3)).double()
    smaller, dense = copy.deepcopy(model), logits(model)
    gates = {}
    for kind, removed in (("heads", HEADS), ("neurons", NEURONS)):
        for units in units_of(model, kind):  # type: ignore[arg-type]
            gates[units.output] = torch.ones(units.count, dtype=torch.float64)
            gates[units.output][removed.get(units.layer, [])] = 0
    with gated(model, gates), skipped(model, [2]):
        found = logits(model)
    remove_heads_(smaller, HEADS)
    remove_neurons_(smaller, NEURONS)
    remove_layers_(smaller, [2])
    torch.testing.assert_close(logits(smaller), found, rtol=0, atol=1e-10)
    assert not torch.allclose(found, dense, rtol=0, atol=1e-3)
    one_by_one = torch.cat([logits(smaller, one[None]) for one in PIXELS])
    torch.testing.assert_close(one_by_one, found, rtol=0, atol=1e-10)


def _everything_(model: Any) -> None:
    substitute_layers_(model, [[1]], width=16)
    remove_heads_(model, {0: [1]})
    remove_neurons_(model, {0: range(0, 64, 3)})
    weights = {f"{name}.weight" for name in structure_of(model).linear_names()}
    set_masks_(model, {n: p.abs() > 0.05 for n, p in model.named_parameters() if n in weights})
    quantize_(model, "int8-static", calibration_batches=[{"pixel_values": PIXELS}])


EDITS: dict[str, Callable[[Any], object]] = {
    "layers": lambda model: remove_layers_(model, [0]),
    "all": _everything_,
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", IMAGES)
def test_it_is_saved_and_loaded(name: str, edit: str, tmp_path: Path) -> None:
    model = randomize_(tiny_model(name, num_hidden_layers=3))
    EDITS[edit](model)
    folder = save_compressed(model, tmp_path / "model")
    loaded = load_compressed(folder)
    alone = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(logits(alone), logits(model))
    assert manifest_of(loaded) == manifest_of(model)


def test_hidden_states_and_projections_are_those_of_patches() -> None:
    model = tiny_model("deit")
    wanted = RequestedOutputs(frozenset([0, 1]), frozenset([0]), embedding=True)
    found = run_with_outputs(model, {"pixel_values": PIXELS}, wanted)
    assert found.mask.all()
    assert found.mask.shape == (3, 6)  # four patches, the class and the distillation token
    assert found.hidden[0].shape == (3, 6, 32)
    assert found.attention[0].query.shape == (3, 6, 32)
    assert task_of(model).name == "image-classification"


class Images(L.LightningDataModule):
    """Images that are brighter on one side: the left one makes the label 1."""

    num_labels = 2
    problem_type = "single_label_classification"
    label_names = ("right", "left")

    def __init__(self) -> None:
        super().__init__()
        pixels = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        labels = torch.arange(32) % 2
        pixels[labels == 1, :, :, :4] += 2
        self.rows = [
            {"pixel_values": image, "labels": label}
            for image, label in zip(pixels, labels, strict=True)
        ]

    def loader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.rows, 8)  # type: ignore[arg-type]  # a list is a map-style dataset

    train_dataloader = val_dataloader = test_dataloader = loader


class Classifier(L.LightningModule):
    """Anybody's module around a model of images."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = tiny_model(name, num_hidden_layers=3).train()

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def validation_step(self, batch: dict[str, Tensor], number: int) -> None:
        self.training_step(batch, number)

    def test_step(self, batch: dict[str, Tensor], number: int) -> None:
        self.log("loss", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


STATIC = QuantizationConfig("int8-static")
CALLBACKS: dict[str, Callable[[], list[L.Callback]]] = {
    "heads and neurons": lambda: [
        HeadPruning(removed_count=4),
        NeuronPruning(removed_fraction=0.5),
    ],
    "layers": lambda: [LayerPruning(removed_count=1)],
    "without training": lambda: [PostTrainingPruning(removed_macs_fraction=0.4)],
    "substitution": lambda: [EncoderBlockSubstitution(num_groups=1, width=16)],
    "quantization": lambda: [PostTrainingQuantization(quantization=STATIC)],
}


@pytest.mark.slow
@pytest.mark.parametrize("technique", CALLBACKS)
@pytest.mark.parametrize("name", IMAGES)
def test_callbacks_compress_and_the_benchmark_measures(
    name: str, technique: str, quiet_trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    module = Classifier(name)
    benchmark = CompressionBenchmark(
        batch_sizes=[4], seconds=0.01, runtimes=["eager"], precisions=["fp32"], latency_examples=2
    )
    logger = L.pytorch.loggers.CSVLogger(tmp_path, name="images")
    callbacks = [*CALLBACKS[technique](), benchmark]
    trainer = quiet_trainer(max_epochs=4, callbacks=callbacks, logger=logger)
    data = Images()
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert manifest_of(module.model)
    (found,) = tmp_path.rglob("report.json")
    report = json.loads(found.read_text())
    assert [row["model"] for row in report["rows"]] == ["dense", "compressed"]
    assert all(row["metrics"]["accuracy"] is not None for row in report["rows"])
    assert report["task"]["tokens"]["max"] == {"vit": 5, "deit": 6}[name]


MODULES: dict[str, Callable[..., FineTuningModule]] = {
    "fine-tuning": FineTuningModule,
    "quantization-aware": partial(QATModule, quantization=STATIC),
    "distillation": partial(
        DistillationModule,
        losses=Losses(
            soft_targets=SoftTargets(), hidden_states=HiddenStates(), relations=Relations(),
            attention_maps=AttentionMaps(), embeddings=Embeddings(),
        ),
        teacher_cache="never",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_modules_train_models_of_images(
    name: str, quiet_trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    config = tiny_options(name)
    module: FineTuningModule = FineTuningModule(
        config=config, task="image-classification", learning_rate=1e-3
    )
    for kind, build in MODULES.items():
        options = {"teacher": str(tmp_path / "teacher")} if kind == "distillation" else {}
        module = build(config=config, task="image-classification", learning_rate=1e-3, **options)
        trainer = quiet_trainer(max_epochs=8, callbacks=[IterativeMagnitudePruning(sparsity=0.5)])
        if kind == "quantization-aware":
            trainer = quiet_trainer(max_epochs=8)
        trainer.fit(module, Images())
        (found,) = trainer.test(module, Images(), verbose=False)
        assert found["test_accuracy"] > 0.9, kind
        if kind == "fine-tuning":
            save_compressed(module.model, tmp_path / "teacher")


def test_the_example_of_an_export_reads_pixels() -> None:
    model = tiny_model("vit")
    for name, target in FORMATS.items():
        example, _ = target.usage(model, ExportOptions())
        assert "AutoTokenizer" not in for_images(example), name
    assert "pixel_values:1x3x8x8" in " ".join(build_command(model, 4))
