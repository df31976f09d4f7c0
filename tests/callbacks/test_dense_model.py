import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_compress.callbacks import CompressionBenchmark, IterativeMagnitudePruning
from lightning_compress.callbacks.dense_model import dense_models
from lightning_compress.callbacks.run import UNNAMED, run_folder
from lightning_compress.saving import load_compressed

WEIGHT = "bert.encoder.layer.0.intermediate.dense.weight"


class Theirs(L.LightningModule):
    """Somebody's module around a Hugging Face model."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder.train()

    def training_step(self, batch, batch_idx):
        return self.encoder(**batch).loss

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Edit(L.Callback):
    """Keeps the dense model, then edits it; as a technique does after so many steps."""

    def __init__(self, step=0):
        self.step: int = step

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            dense_models.save(trainer, pl_module)
            with torch.no_grad():
                weight(pl_module.encoder).zero_()


def weight(model):
    return dict(model.named_parameters())[WEIGHT]


def dense_weight(folder):
    return weight(load_compressed(folder / "dense"))


def batches():
    """One batch, so that every step ends an epoch."""
    rows = [{"input_ids": torch.full((6,), 5 + n), "labels": torch.tensor(n % 2)} for n in range(8)]
    return DataLoader(rows, batch_size=8)  # type: ignore[arg-type]  # a list is a data set


@pytest.fixture
def model(tiny_model):
    """Builds a tiny BERT whose weights tell which one it is."""

    def build(value):
        bert = tiny_model("bert")
        with torch.no_grad():
            weight(bert).fill_(value)
        return bert

    return build


def fit(trainer, bert, **options):
    trainer.fit(Theirs(bert), batches(), **options)
    return bert


def test_a_run_without_a_folder_does_not_write_to_the_working_directory(
    model, quiet_trainer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    trainer = quiet_trainer(max_steps=1, default_root_dir=None, callbacks=[Edit()])
    fit(trainer, model(1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert (dense_weight(UNNAMED) == 1).all()


def test_the_dense_model_of_an_earlier_run_is_replaced(model, quiet_trainer, tmp_path):
    for value in (1.0, 2.0):
        fit(quiet_trainer(max_steps=1, callbacks=[Edit()]), model(value))
        assert (dense_weight(tmp_path) == value).all()


def test_the_first_edit_of_a_run_decides(model, quiet_trainer, tmp_path):
    fit(quiet_trainer(max_steps=3, callbacks=[Edit(), Edit(step=1)]), model(3.0))
    assert (dense_weight(tmp_path) == 3).all()


def test_a_resumed_run_keeps_its_dense_model(model, quiet_trainer, tmp_path):
    trainer = quiet_trainer(max_steps=1, callbacks=[Edit()])
    fit(trainer, model(4.0))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    # In a new process the model is another object, and a second technique has its first edit.
    resumed = quiet_trainer(max_steps=2, callbacks=[Edit(step=1)])
    fit(resumed, model(0.0), ckpt_path=tmp_path / "a.ckpt")
    assert (dense_weight(tmp_path) == 4).all()


def test_a_dev_run_writes_nothing(model, quiet_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = quiet_trainer(fast_dev_run=True, default_root_dir=None, callbacks=[Edit()])
    fit(trainer, model(1.0))
    assert not list(tmp_path.iterdir())


def compared(trainer, module, **options):
    """The models that the benchmark would measure after a test."""
    trainer.test(module, batches(), verbose=False, **options)
    (benchmark,) = (c for c in trainer.callbacks if isinstance(c, CompressionBenchmark))
    return benchmark._models(module.encoder, run_folder(trainer))


@pytest.fixture
def measured(monkeypatch):
    """The benchmark without its clock."""
    monkeypatch.setattr(CompressionBenchmark, "on_test_end", lambda *_: None)
    return CompressionBenchmark


def test_the_benchmark_compares_with_this_runs_dense_model_alone(
    model, quiet_trainer, tmp_path, measured, caplog
):
    def pruning():
        return IterativeMagnitudePruning(sparsity=0.5, schedule="one_shot", warmup=0.0)

    for value in (1.0, 2.0):
        trainer = quiet_trainer(max_steps=1, callbacks=[pruning(), measured()])
        module = Theirs(model(value))
        trainer.fit(module, batches())
        assert (weight(compared(trainer, module)["dense"]) == value).all()
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    resumed = quiet_trainer(max_steps=2, callbacks=[pruning(), measured()])
    module = Theirs(model(0.0))
    resumed.fit(module, batches(), ckpt_path=tmp_path / "a.ckpt")
    assert (weight(compared(resumed, module)["dense"]) == 2).all()

    # A test alone cannot know, and names the model it compares with.
    caplog.clear()
    tested = quiet_trainer(callbacks=[pruning(), measured()])
    both = compared(tested, Theirs(model(0.0)), ckpt_path=tmp_path / "a.ckpt")
    assert (weight(both["dense"]) == 2).all()
    assert "from an earlier run" in caplog.text

    # A run that starts from a compressed model and edits nothing has no dense one.
    further = quiet_trainer(max_steps=1, callbacks=[measured()])
    pruned = Theirs(both["compressed"])
    further.fit(pruned, batches())
    assert list(compared(further, pruned)) == ["compressed"]
    assert "There is no dense model" in caplog.text
