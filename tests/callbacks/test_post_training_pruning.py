import json
import logging
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_compress.callbacks import CompressionBenchmark, PostTrainingPruning
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, units_of
from lightning_compress.modules import FineTuningModule
from lightning_compress.saving import load_compressed

from ..families import tiny_options

CONFIG = tiny_options(
    "bert", max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
)


def fine_tuning(**options):
    torch.manual_seed(0)
    return FineTuningModule(**{"config": CONFIG, "learning_rate": 3e-3, **options})


def counts(model, kind):
    return [one.count for one in units_of(model, kind)]


@pytest.fixture
def trained(toy_data, quiet_trainer, tmp_path):
    """Fits with post-training pruning at the end; gives trainer, module and the checkpoint."""

    def fit(epochs=6, **options):
        best = ModelCheckpoint(tmp_path / "checkpoints", monitor="val_accuracy", mode="max")
        callbacks = [PostTrainingPruning(**{"removed_macs_fraction": 0.5, **options}), best]
        module = fine_tuning()
        trainer = quiet_trainer(max_epochs=epochs, enable_checkpointing=True, callbacks=callbacks)
        trainer.fit(module, toy_data)
        return trainer, module, best

    return fit


def test_half_of_the_macs_are_removed_and_the_model_stays_accurate(trained, toy_data):
    trainer, module, best = trained()
    heads, neurons = (sum(counts(module.model, kind)) for kind in ("heads", "neurons"))
    left = heads * (4 * 32 * 8 * 8 + 2 * 8 * 8 * 8) + neurons * 2 * 32 * 8
    assert 0.4 < left / (8 * (4 * 32 * 8 * 8 + 2 * 8 * 8 * 8) + 128 * 2 * 32 * 8) <= 0.5
    assert best.best_model_path.endswith("post_training.ckpt")
    dense = load_compressed(Path(trainer.default_root_dir) / "dense")
    assert counts(dense, "heads") == [4, 4]
    trainer.test(module, toy_data, ckpt_path="best", verbose=False, weights_only=True)
    assert trainer.callback_metrics["test_accuracy"] > 0.95
    assert best.best_model_path.endswith("post_training.ckpt")
    assert {edit["technique"] for edit in manifest_of(module.model)} == {"post_training_pruning"}


def test_it_starts_from_the_best_weights_not_from_the_last(trained, toy_data, quiet_trainer):
    trainer, _, best = trained()
    kept = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    name = "model.bert.embeddings.word_embeddings.weight"  # which pruning does not change
    (path,) = (Path(trainer.default_root_dir) / "checkpoints").glob("epoch*.ckpt")
    assert torch.equal(kept[name], torch.load(path, weights_only=True)["state_dict"][name])


def test_without_any_training_it_prunes_what_it_is_given(
    trained, toy_data, quiet_trainer, tmp_path
):
    _, module, _ = trained()
    source = load_compressed(tmp_path / "dense")
    source.save_pretrained(tmp_path / "given")
    again = fine_tuning(config=None, pretrained=str(tmp_path / "given"))
    trainer = quiet_trainer(
        max_epochs=0, callbacks=[PostTrainingPruning(removed_macs_fraction=0.5)]
    )
    trainer.fit(again, toy_data)
    assert trainer.global_step == 0
    assert manifest_of(again.model) == manifest_of(module.model)
    batch = next(iter(toy_data.test_dataloader()))
    with torch.inference_mode():
        assert torch.equal(again.eval()(batch), module.eval()(batch))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_its_checkpoint_restores_the_model_and_is_not_pruned_again(
    trained, toy_data, quiet_trainer
):
    _, module, best = trained()
    loaded = FineTuningModule.load_from_checkpoint(best.best_model_path, weights_only=True)
    assert manifest_of(loaded.model) == manifest_of(module.model)
    resumed = fine_tuning()
    quiet_trainer(max_epochs=6, callbacks=[PostTrainingPruning(removed_macs_fraction=0.5)]).fit(
        resumed, toy_data, ckpt_path=best.best_model_path, weights_only=True
    )
    assert manifest_of(resumed.model) == manifest_of(module.model)


def times(monkeypatch, **seconds):
    """A machine on which units take these times."""
    monkeypatch.setattr(
        "lightning_compress.callbacks.post_training_pruning.seconds_per_unit",
        lambda model, batch, units: {one.output: seconds[one.kind] for one in units},
    )


def test_a_fraction_of_the_measured_latency_is_removed(trained, monkeypatch, caplog):
    times(monkeypatch, heads=8e-5, neurons=1e-5)
    with caplog.at_level(logging.INFO):
        _, module, _ = trained(epochs=1, removed_latency_fraction=0.5, removed_macs_fraction=None)
    left = 8 * sum(counts(module.model, "heads")) + sum(counts(module.model, "neurons"))
    assert 0.5 * (8 * 8 + 128) - 8 < left <= 0.5 * (8 * 8 + 128)
    assert "neurons remain" in caplog.text


def test_units_without_latency_are_kept(trained, monkeypatch):
    times(monkeypatch, heads=1e-5, neurons=0.0)
    _, module, _ = trained(epochs=1, removed_latency_fraction=0.5, removed_macs_fraction=None)
    assert sum(counts(module.model, "heads")) == 4
    assert counts(module.model, "neurons") == [64, 64]


def test_unmeasurable_latency_is_refused_with_a_remedy(trained, monkeypatch):
    times(monkeypatch, heads=0.0, neurons=0.0)
    with pytest.raises(InputError, match="Use removed_macs_fraction"):
        trained(epochs=1, removed_latency_fraction=0.5, removed_macs_fraction=None)


@pytest.mark.slow
def test_the_real_clock_gives_a_smaller_model_or_an_error(trained):
    try:
        _, module, _ = trained(epochs=1, removed_latency_fraction=0.3, removed_macs_fraction=None)
    except InputError as error:
        if not re.search("latency|budget", str(error)):
            raise
    else:
        left = counts(module.model, "heads") + counts(module.model, "neurons")
        assert sum(left) < 8 + 128


def test_the_report_has_the_dense_model_beside_it(toy_data, quiet_trainer, tmp_path):
    bench = CompressionBenchmark(runtimes=["eager"], precisions=["fp32"], seconds=0.01)
    trainer = quiet_trainer(
        max_epochs=1, callbacks=[PostTrainingPruning(removed_macs_fraction=0.3), bench]
    )
    module = fine_tuning()
    trainer.fit(module, toy_data)
    trainer.test(module, toy_data, verbose=False)
    text = (tmp_path / "report.json").read_text()
    assert '"dense"' in text
    assert "post_training_pruning" in text


DDP = """
import json, sys
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_compress.callbacks import PostTrainingPruning, run
from tests.callbacks.conftest import two_processes
from tests.callbacks.test_post_training_pruning import counts, fine_tuning
from tests.conftest import ToyData

saved = []
save = run.save_compressed
def counted(model, folder, *rest):
    saved.append(str(folder))
    return save(model, folder, *rest)
run.save_compressed = counted

if __name__ == "__main__":
    data, module = ToyData(), fine_tuning()
    best = ModelCheckpoint(monitor="val_accuracy", mode="max")
    trainer = two_processes(
        sys.argv[1], max_epochs=3, enable_checkpointing=True,
        callbacks=[PostTrainingPruning(removed_macs_fraction=0.5), best],
    )
    trainer.fit(module, data)
    torch.save(module.state_dict(), f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
    fitted = [counts(module.model, kind) for kind in ("heads", "neurons")]
    trainer.test(module, data, ckpt_path="best", verbose=False, weights_only=True)
    found = {
        "counts": fitted, "saved": saved, "best": best.best_model_path,
        "accuracy": float(trainer.callback_metrics["test_accuracy"]),
    }
    with open(f"{sys.argv[1]}/rank{trainer.global_rank}.json", "w") as file:
        json.dump(found, file)
"""


@pytest.mark.slow
def test_two_processes_prune_alike_and_keep_one_dense_model(run_script, tmp_path):
    run_script(DDP)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["saved"] == [str(tmp_path / "dense")]
    assert second["saved"] == []
    for same in ("counts", "best", "accuracy"):
        assert first[same] == second[same]
    heads, neurons = first["counts"]
    assert sum(heads) < 8
    assert sum(neurons) < 128
    weights, others = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert counts(load_compressed(tmp_path / "dense"), "heads") == [4, 4]
    loaded = FineTuningModule.load_from_checkpoint(first["best"], weights_only=True)
    assert all(torch.equal(weights[name], value) for name, value in loaded.state_dict().items())
