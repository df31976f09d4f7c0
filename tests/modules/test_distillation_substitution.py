"""Distillation of a model whose layers are substituted while it learns from what it was."""

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_compress.callbacks import EncoderBlockSubstitution
from lightning_compress.distillation.attention import Relations
from lightning_compress.distillation.hidden_states import Embeddings, HiddenStates
from lightning_compress.distillation.objective import Losses
from lightning_compress.distillation.soft_targets import SoftTargets
from lightning_compress.distillation.teacher import fingerprint
from lightning_compress.models import manifest_of, structure_of
from lightning_compress.modules import DistillationModule
from lightning_compress.saving import load_compressed, save_compressed
from lightning_compress.substitution.edit import switches_of

from ..conftest import SaveEveryStep, assert_same


class Teacher(L.Callback):
    """Who teaches, and what of the losses there is at each step."""

    def __init__(self) -> None:
        self.prints: set[object] = set()
        self.terms: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.prints.add(fingerprint(pl_module._teacher.model))
        metrics = trainer.callback_metrics
        self.terms.append({n: float(v) for n, v in metrics.items() if n.startswith("train_")})


def substitution(**options: Any) -> EncoderBlockSubstitution:
    defaults = {"num_groups": 2, "distil_steps": 5, "calibration_examples": 32, "width": 16}
    return EncoderBlockSubstitution(**{**defaults, **options})


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_what_it_was_teaches_what_becomes_of_it(
    texts, student, quiet_trainer, trained_teacher, tmp_path
):
    losses = Losses(soft_targets=SoftTargets(), hidden_states=HiddenStates(layers="uniform"))

    def build(seed: int = 0):
        return student(
            seed, pretrained=str(trained_teacher / "teacher"), teacher="dense", losses=losses,
            teacher_cache="never",
        )  # fmt: skip

    def fit(module: DistillationModule, *callbacks: L.Callback, ckpt: Any = None) -> L.Trainer:
        trainer: L.Trainer = quiet_trainer(
            max_epochs=3,
            enable_checkpointing=not ckpt,
            log_every_n_steps=1,
            callbacks=[substitution(), *callbacks],
        )
        trainer.fit(module, datamodule=texts(), ckpt_path=ckpt, weights_only=True)
        return trainer

    module, look = build(), Teacher()
    best = ModelCheckpoint(tmp_path / "best", monitor="val_accuracy", mode="max")
    trainer = fit(module, look, best, SaveEveryStep(tmp_path))
    dense = load_compressed(trained_teacher / "teacher")
    assert look.prints == {fingerprint(dense)}
    assert trainer.callback_metrics["val_accuracy"] > 0.9
    assert all(
        torch.isfinite(torch.tensor(list(terms.values()))).all() and len(terms) > 2
        for terms in look.terms
    )
    assert not switches_of(module.model)
    assert len(structure_of(module.model).projections) == 4
    checkpoint = torch.load(best.best_model_path, weights_only=True)
    assert not any(
        ".predecessor." in name or "teacher" in name for name in checkpoint["state_dict"]
    )
    state = module.state_dict()
    takeover = round(0.5 * trainer.global_step)
    for step in (takeover - 2, takeover, takeover + 2):
        resumed = build(seed=7)
        fit(resumed, ckpt=tmp_path / f"step={step}.ckpt")
        assert manifest_of(resumed.model) == manifest_of(module.model)
        assert_same(resumed.state_dict(), state)
    results = trainer.test(
        module, datamodule=texts(), ckpt_path="best", verbose=False, weights_only=True
    )
    assert results[0]["test_accuracy"] > 0.9
    loaded = DistillationModule.load_from_checkpoint(best.best_model_path, weights_only=True)
    assert loaded.model.state_dict().keys() == module.model.state_dict().keys()


def test_every_term_looks_at_layers_not_at_what_is_in_them(
    texts, student, quiet_trainer, trained_teacher
):
    losses = Losses(
        hidden_states=HiddenStates(layers={0: 0, 1: 2, 2: 3}),
        relations=Relations(layers="uniform", heads=2),
        embeddings=Embeddings(),
    )
    module = student(pretrained=str(trained_teacher / "teacher"), teacher="dense", losses=losses)
    look = Teacher()
    own = substitution(groups=[[1, 2]], depth=3, heads=2)
    trainer = quiet_trainer(max_epochs=1, log_every_n_steps=1, callbacks=[own, look])
    trainer.fit(module, datamodule=texts())
    assert len(structure_of(module.model).layers) == 3
    assert len(structure_of(module.model).blocks) == 5
    for terms in look.terms:
        for term in ("hidden_states", "relations", "embeddings", "soft_targets", "task"):
            assert terms[f"train_{term}"] >= 0


def test_a_substituted_model_teaches_and_is_taught(
    texts, student, quiet_trainer, trained_teacher, tmp_path
):
    # In a later run: a student with compact blocks from the start, and one as a teacher.
    first = student(pretrained=str(trained_teacher / "teacher"), teacher="dense")
    run = {"max_epochs": 1, "default_root_dir": tmp_path}
    trainer = quiet_trainer(**run, callbacks=[substitution(groups=[[1, 2]], depth=2)])
    trainer.fit(first, datamodule=texts())
    folder = save_compressed(first.model, tmp_path / "small", texts().tokenizer)
    losses = Losses(hidden_states=HiddenStates(layers="uniform"), embeddings=Embeddings())
    for options in (
        {"pretrained": str(folder)},
        {"teacher": str(folder)},
        {"teacher": str(folder), "every_nth_layer": 2},
    ):
        module = student(losses=losses, **options)
        trainer = quiet_trainer(max_steps=2)
        trainer.fit(module, datamodule=texts())
        assert trainer.global_step == 2
    assert len(structure_of(module.model).layers) == 2
