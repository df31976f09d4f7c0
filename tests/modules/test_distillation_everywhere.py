"""Distillation with all that fits a fine-tuning: pruning, language models, other labels."""

import json
import random
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_compress.callbacks import (
    CompressionBenchmark,
    HeadPruning,
    IterativeMagnitudePruning,
    LayerPruning,
    StructuredPruning,
)
from lightning_compress.distillation.attention import AttentionMaps, Relations
from lightning_compress.distillation.hidden_states import Embeddings, HiddenStates
from lightning_compress.distillation.objective import Losses
from lightning_compress.distillation.soft_targets import SoftTargets
from lightning_compress.distillation.teacher import fingerprint
from lightning_compress.models import manifest_of, units_of
from lightning_compress.models.masks import masks_of
from lightning_compress.modules import DistillationModule
from lightning_compress.saving import load_compressed

from ..conftest import SaveEveryStep, assert_same
from .conftest import GPT2, STUDENT, TEACHER, lines, text_data, trained

UNIFORM = Losses(hidden_states=HiddenStates(layers="uniform"))


def counts(model: Any, kind: Any) -> list[int]:
    return [one.count for one in units_of(model, kind)]


def bert_layers(model: Any) -> Any:
    return model.bert.encoder.layer


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("use", ["always", "never"])
def test_a_pruned_model_is_taught_by_what_it_was(
    texts, student, quiet_trainer, trained_teacher, tmp_path, use
):
    def build(seed=0):
        return student(
            seed, pretrained=str(trained_teacher / "teacher"), teacher="dense", teacher_cache=use
        )

    def fit(module, *callbacks, ckpt=None, **options):
        pruning = StructuredPruning(
            removed_macs_fraction=0.5, pruning_steps=2, warmup=0.2, recovery=0.4
        )
        trainer = quiet_trainer(max_epochs=2, callbacks=[pruning, *callbacks], **options)
        trainer.fit(module, datamodule=texts(), ckpt_path=ckpt, weights_only=True)
        return trainer

    best = ModelCheckpoint(tmp_path / "best", monitor="val_accuracy", mode="max")
    bench = CompressionBenchmark(runtimes=["eager"], precisions=["fp32"], seconds=0.01)
    save = SaveEveryStep(tmp_path)
    module = build()
    trainer = fit(module, best, bench, save, enable_checkpointing=True)
    whole = module.state_dict()
    edits = manifest_of(module.model)
    assert sum(counts(module.model, "heads")) < 16

    # Between the two rounds, and after the last.
    for step in (4, 10):
        resumed = build(seed=7)
        fit(resumed, ckpt=tmp_path / f"step={step}.ckpt")
        assert_same(resumed.state_dict(), whole)
        assert manifest_of(resumed.model) == edits

    results = trainer.test(
        module, datamodule=texts(), ckpt_path="best", verbose=False, weights_only=True
    )
    assert results[0]["test_accuracy"] > 0.9
    dense = load_compressed(tmp_path / "dense")
    assert counts(dense, "heads") == [4, 4, 4, 4]
    small = load_compressed(tmp_path / "model")
    assert counts(small, "neurons") == counts(module.model, "neurons")
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert rows[1]["parameters"] == sum(weight.numel() for weight in small.parameters())
    loaded = DistillationModule.load_from_checkpoint(best.best_model_path, weights_only=True)
    assert_same(loaded.model.state_dict(), small.state_dict())

    # The dense model beside a run's model teaches it without being named.
    again = student(pretrained=str(tmp_path / "model"), teacher="dense", teacher_cache="never")
    found = []

    class Look(L.Callback):
        def on_train_batch_end(self, *_):
            found.append(fingerprint(again._teacher.model))

    quiet_trainer(max_steps=1, callbacks=[Look()]).fit(again, datamodule=texts())
    assert found == [fingerprint(dense)]
    assert counts(again.model, "heads") == counts(small, "heads")


@pytest.mark.parametrize(
    ("callback", "losses"),
    [
        (lambda: IterativeMagnitudePruning(sparsity=0.6), Losses()),
        (lambda: LayerPruning(removed_count=2, pruning_steps=2), UNIFORM),
        (lambda: HeadPruning(removed_fraction=0.5, pruning_steps=2),
         Losses(relations=Relations(layers="uniform"), embeddings=Embeddings())),
    ],
    ids=["magnitude", "layers", "heads"],
)  # fmt: skip
def test_every_kind_of_pruning_goes_with_it(
    texts, student, quiet_trainer, trained_teacher, tmp_path, callback, losses
):
    def fit(ckpt=None, seed=0):
        module = student(
            seed, pretrained=str(trained_teacher / "teacher"), teacher="dense", losses=losses
        )
        save = L.Callback() if ckpt else SaveEveryStep(tmp_path)
        trainer = quiet_trainer(max_epochs=2, callbacks=[callback(), save])
        trainer.fit(module, datamodule=texts(), ckpt_path=ckpt, weights_only=True)
        return trainer, module

    trainer, module = fit()
    assert manifest_of(module.model)
    assert trainer.callback_metrics["val_accuracy"] > 0.9
    for name, mask in masks_of(module.model).items():
        assert (module.model.get_parameter(name)[~mask] == 0).all()
    assert_same(fit(tmp_path / "step=8.ckpt", seed=7)[1].state_dict(), module.state_dict())


@pytest.fixture(scope="session")
def causal(trained_teacher):
    """A GPT-2 that has read the texts."""
    trained(trained_teacher, "gpt2", lines(trained_teacher), 6, task="causal-lm", config=GPT2)
    return trained_teacher / "gpt2"


@pytest.fixture(scope="session")
def masked(trained_teacher):
    """A BERT that has filled the gaps in them."""
    config = {**TEACHER, "num_hidden_layers": 2}
    trained(
        trained_teacher,
        "mlm",
        lines(trained_teacher, objective="masked"),
        8,
        task="masked-lm",
        config=config,
    )
    return trained_teacher / "mlm"


def test_half_of_a_gpt2_learns_token_by_token_from_the_cache(
    trained_teacher, student, quiet_trainer, causal, tmp_path
):
    found: dict[str, Any] = {}
    for use, top_k in (("never", 64), ("always", 100), ("auto", 8)):
        module = student(
            task="causal-lm", teacher=str(causal), every_nth_layer=2, teacher_cache=use,
            top_k=top_k, losses=Losses(soft_targets=SoftTargets(temperature=1.5)),
        )  # fmt: skip
        trainer = quiet_trainer(max_epochs=2, log_every_n_steps=1)
        trainer.fit(module, datamodule=lines(trained_teacher))
        found[use] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert module.model.config.n_layer == 2
        assert manifest_of(module.model) == []
        assert found[use]["val_perplexity"] < 100
        assert found[use]["val_agreement"] > 0.5
    # All 100 tokens are kept, or eight of them and what the others add up to.
    assert found["always"] == pytest.approx(found["never"], rel=1e-3, abs=1e-4)
    assert found["auto"]["train_soft_targets"] < found["never"]["train_soft_targets"] + 1e-4
    assert len(list((tmp_path / "cache" / "teacher").glob("[!.]*"))) == 2


def test_gaps_are_filled_live(trained_teacher, student, quiet_trainer, masked, tmp_path):
    losses = Losses(hidden_states=HiddenStates(), attention_maps=AttentionMaps())
    config = {**TEACHER, "hidden_size": 16, "num_hidden_layers": 1}
    module = student(task="masked-lm", teacher=str(masked), config=config, losses=losses)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, datamodule=lines(trained_teacher, objective="masked"))
    assert not (tmp_path / "cache").exists()
    assert trainer.callback_metrics["val_agreement"].isfinite()
    assert trainer.callback_metrics["val_teacher_perplexity"] < 100


@pytest.mark.parametrize("kind", [pytest.param("numbers", marks=pytest.mark.slow), "several"])
def test_numbers_and_several_labels(kind, trained_teacher, student, quiet_trainer, tmp_path):
    folder = tmp_path / "other"
    (folder / "texts").mkdir(parents=True)
    (folder / "tokenizer").symlink_to(trained_teacher / "tokenizer")
    draw, rows = random.Random(1), []
    for _ in range(160):
        first = [draw.random() < 0.5 for _ in range(3)]
        chosen = 2 * [f"w{i if one else 50}" for i, one in enumerate(first)]
        chosen += draw.choices([f"w{i}" for i in range(4, 95)], k=draw.randint(1, 3))
        label = sum(first) + 0.5 if kind == "numbers" else [f"l{i}" for i in range(3) if first[i]]
        rows.append(json.dumps({"text": " ".join(chosen), "label": label}))
    (folder / "texts" / "train.jsonl").write_text("\n".join(rows))
    trained(folder, "teacher", text_data(folder), 15, config={**TEACHER, "num_hidden_layers": 2})
    agreed: dict[str, dict[str, float]] = {}
    config = {**STUDENT, "hidden_size": 32}
    for use in ("always", "never"):
        module = student(
            teacher=str(folder / "teacher"), teacher_cache=use, config=config, learning_rate=5e-3
        )
        trainer = quiet_trainer(max_epochs=10)
        trainer.fit(module, datamodule=text_data(folder))
        agreed[use] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert agreed["always"] == pytest.approx(agreed["never"], rel=1e-2, abs=1e-3)
    metric = {"numbers": "spearman", "several": "f1"}[kind]
    assert agreed["never"][f"val_{metric}"] > 0.7
    assert agreed["never"][f"val_teacher_{metric}"] > 0.7
    assert ("val_agreement" in agreed["never"]) == (kind == "several")


def test_every_second_layer_is_a_student_and_a_checkpoint_a_teacher(
    texts, student, quiet_trainer, trained_teacher, tmp_path
):
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = load_compressed(trained_teacher / "teacher")
    module = student(every_nth_layer=2, config=config, learning_rate=1e-9, losses=UNIFORM)
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, datamodule=texts())
    layers, its = bert_layers(module.model), bert_layers(teacher)
    assert len(layers) == module.model.config.num_hidden_layers == 2
    for own, other in zip(layers, (its[0], its[3]), strict=True):
        for name, value in own.state_dict().items():
            assert torch.allclose(value, other.state_dict()[name], atol=1e-6)
    assert module.model.config.hidden_dropout_prob == 0.0
    assert all(weight.requires_grad for weight in module.model.parameters())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "half.ckpt", weights_only=True)
    assert_same(loaded.model.state_dict(), module.model.state_dict())
    for name in ("teacher", "teacher.ckpt"):
        again = student(teacher=str(trained_teacher / name), teacher_cache="never")
        trainer = quiet_trainer(max_epochs=1)
        trainer.fit(again, datamodule=texts())
        assert trainer.callback_metrics["val_teacher_accuracy"] == 1.0
    module = student(every_nth_layer=2, teacher=str(trained_teacher / "teacher.ckpt"))
    quiet_trainer(max_steps=1).fit(module, datamodule=texts())
    assert len(bert_layers(module.model)) == 2


DDP = """
import json, sys
from pathlib import Path
import lightning as L, torch
from lightning_compress.distillation import outputs, teacher
from lightning_compress.distillation.hidden_states import Embeddings
from lightning_compress.distillation.objective import Losses
from lightning_compress.modules import DistillationModule
from tests.modules.conftest import QUIET, STUDENT, text_data

if __name__ == "__main__":
    asked = []
    def count(model, batch, wanted):
        asked.append(len(batch["input_ids"]))
        return outputs.run_with_outputs(model, batch, wanted)
    teacher.run_with_outputs = count
    place, trained_teacher, left = Path(sys.argv[1]), Path(sys.argv[2]), {}
    for use in ("always", "never"):
        asked.clear()
        torch.manual_seed(0)
        module = DistillationModule(
            config=STUDENT, teacher=str(trained_teacher / "teacher"), learning_rate=3e-3,
            cache_dir=str(place / "cache"), losses=Losses(embeddings=Embeddings()),
            teacher_cache=use,
        )
        trainer = L.Trainer(
            **{**QUIET, "devices": 2}, strategy="ddp", max_epochs=2, default_root_dir=place
        )
        trainer.fit(module, datamodule=text_data(trained_teacher, batch_size=9))
        mine = torch.cat([p.detach().flatten() for p in module.parameters()])
        both = trainer.strategy.all_gather(mine)
        assert torch.equal(both[0], both[1])
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        left[use] = (sum(asked), metrics, mine.tolist())
    (place / f"rank{trainer.global_rank}.json").write_text(json.dumps(left))
"""


@pytest.mark.slow
def test_two_processes_ask_once_and_learn_the_same(trained_teacher, run_script, tmp_path):
    log = run_script(DDP, trained_teacher, options=["-W", "error::UserWarning:lightning_compress"])
    assert "sync_dist" not in log
    assert len(list((tmp_path / "cache" / "teacher").glob("[!.]*"))) == 1
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    # Each measures the teacher on its half of 38 validation texts; one asks it about all 150.
    assert sorted(rank["always"][0] for rank in (one, other)) == [19, 19 + 150]
    for use in ("always", "never"):
        assert one[use][2] == other[use][2]
        assert one[use][1]["val_divergence"] == other[use][1]["val_divergence"]
        assert one[use][1]["val_teacher_accuracy"] == 1.0
    for name, value in one["always"][1].items():
        assert value == pytest.approx(one["never"][1][name], rel=1e-3, abs=1e-4), name
    assert one["always"][2] == pytest.approx(one["never"][2], rel=1e-3, abs=1e-4)
