import csv
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_compress.errors import InputError
from lightning_compress.models import set_masks_
from lightning_compress.models.masks import masks_of
from lightning_compress.modules import FineTuningModule, NonFiniteLossError
from lightning_compress.saving import save_compressed
from lightning_compress.tasks import task_named

from ..conftest import assert_same
from ..families import tiny_options

CONFIG = tiny_options("bert", num_attention_heads=2, max_position_embeddings=16)

LOAD = """
import sys, torch
from lightning_compress.modules import FineTuningModule
module = FineTuningModule.load_from_checkpoint(sys.argv[1]).eval()
batch = torch.load(sys.argv[2])
with torch.inference_mode():
    torch.save(module(batch), sys.argv[3])
"""


def fit(module, data, trainer, **options):
    torch.manual_seed(0)
    trainer.fit(module, data, **options)
    return module


def weights(module):
    return {name: value.clone() for name, value in module.model.state_dict().items()}


def test_it_learns_and_logs_what_it_promises(toy_data, quiet_trainer):
    trainer = quiet_trainer(max_epochs=12, log_every_n_steps=1)
    module = fit(FineTuningModule(config=CONFIG, learning_rate=3e-3), toy_data, trainer)
    logged = trainer.callback_metrics
    assert logged["val_accuracy"] > 0.95
    assert {"train_loss", "learning_rate", "val_loss", "val_f1", "val_mcc"} <= logged.keys()
    results = trainer.test(module, toy_data, verbose=False)
    right = 0
    for batch in toy_data.test_dataloader():  # the slow way
        with torch.no_grad():
            right += int((module(batch).argmax(-1) == batch["labels"]).sum())
    assert results[0]["test_accuracy"] == pytest.approx(right / len(toy_data.rows))


def test_a_logger_gets_the_learning_rate_of_each_step_that_it_takes(
    toy_data, quiet_trainer, tmp_path
):
    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer(max_epochs=2, log_every_n_steps=3, logger=logger)
    fit(FineTuningModule(config=CONFIG, learning_rate=1e-2, warmup=0.25), toy_data, trainer)
    rows = csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines())
    found = {int(row["step"]): row["learning_rate"] for row in rows if row["learning_rate"]}
    # 16 steps: 4 of warm-up, which starts with a fifth of the peak, and then straight down.
    expected = {step: 1e-2 * min((step + 1) / 5, (16 - step) / 12) for step in (2, 5, 8, 11, 14)}
    assert {step: float(rate) for step, rate in found.items()} == pytest.approx(expected)


def test_random_numbers_of_a_batch_are_those_of_its_seed(toy_data, quiet_trainer):
    module = fit(FineTuningModule(config=CONFIG), toy_data, quiet_trainer(max_epochs=1))
    module.on_train_batch_start({}, 0)
    found = torch.rand(3)
    batches = module.trainer.fit_loop.epoch_loop.total_batch_idx
    torch.manual_seed(random.Random(f"0-{batches}-0").getrandbits(63))  # of seed, batch and rank
    assert torch.equal(found, torch.rand(3))


def test_a_checkpoint_alone_brings_the_model_back_in_a_new_process(
    tiny_bert, toy_data, quiet_trainer, tmp_path
):
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    mask = torch.rand(64, 32) > 0.5
    set_masks_(tiny_bert, {name: mask})
    start = save_compressed(tiny_bert, tmp_path / "start")
    trainer = quiet_trainer(max_steps=3)
    module = fit(FineTuningModule(pretrained=str(start)), toy_data, trainer)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for file in start.iterdir():
        file.unlink()
    loaded = FineTuningModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert_same(weights(loaded), weights(module))
    assert torch.equal(masks_of(loaded.model)[name], mask)
    batch = next(iter(toy_data.test_dataloader()))
    torch.save(batch, tmp_path / "batch.pt")
    files = [str(tmp_path / file) for file in ("a.ckpt", "batch.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", LOAD, *files], check=True, timeout=120)
    with torch.inference_mode():
        assert torch.equal(torch.load(files[2]), module.eval()(batch))


# The second run keeps its checkpoints elsewhere on purpose.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resumed_equals_uninterrupted_bit_for_bit(toy_data, quiet_trainer, tmp_path):
    def trainer(name):
        every_epoch = ModelCheckpoint(tmp_path / name, filename="{epoch}", save_top_k=-1)
        return quiet_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[every_epoch])

    whole_trainer, resumed_trainer = trainer("whole"), trainer("resumed")
    whole = fit(FineTuningModule(config=CONFIG), toy_data, whole_trainer)
    torch.manual_seed(123)  # the resumed run must not depend on the process's own state
    resumed = FineTuningModule(config=CONFIG)
    resumed_trainer.fit(resumed, toy_data, ckpt_path=tmp_path / "whole" / "epoch=0.ckpt")
    assert_same(weights(resumed), weights(whole))
    one, other = (t.optimizers[0].state_dict()["state"] for t in (resumed_trainer, whole_trainer))
    assert_same(one, other)


def test_masks_of_the_starting_model_stay_zero(tiny_bert, toy_data, quiet_trainer, tmp_path):
    name = "bert.encoder.layer.1.output.dense.weight"
    mask = torch.rand(32, 64) > 0.9
    set_masks_(tiny_bert, {name: mask})
    start = save_compressed(tiny_bert, tmp_path / "start")
    module = FineTuningModule(pretrained=str(start), learning_rate=1e-2)
    fit(module, toy_data, quiet_trainer(max_steps=4))
    weight = dict(module.model.named_parameters())[name]
    assert (weight[~mask] == 0).all()
    assert not torch.equal(weight[mask], dict(tiny_bert.named_parameters())[name][mask])


def test_a_loss_that_is_not_a_number_stops_with_the_step_and_spares_the_weights(
    toy_data, quiet_trainer
):
    before = {}

    class Overflowing(FineTuningModule):
        def forward(self, batch):
            logits = super().forward(batch)
            if self.training and self.global_step == 3:
                before.update(weights(self))
                return logits * torch.inf
            return logits

    module = Overflowing(config=CONFIG)
    with pytest.raises(NonFiniteLossError, match=r"step 3.*model\.learning_rate"):
        fit(module, toy_data, quiet_trainer(max_epochs=1))
    assert_same(weights(module), before)
    assert all(value.isfinite().all() for value in weights(module).values())


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_language_models_train(task, quiet_trainer, toy_data):
    for row in toy_data.rows:
        row["labels"] = row["input_ids"]
    toy_data.num_labels = toy_data.problem_type = None
    family = {"causal-lm": "gpt2", "masked-lm": "bert"}[task]
    config = tiny_options(family, num_attention_heads=2)
    module = FineTuningModule(config=config, task=task, learning_rate=1e-3)
    trainer = quiet_trainer(max_epochs=1)
    fit(module, toy_data, trainer)
    batch = next(iter(toy_data.val_dataloader()))
    with torch.no_grad():
        loss = task_named(task).loss(module.eval()(batch), batch["labels"])
        theirs = module.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    assert loss == pytest.approx(float(theirs), rel=1e-5)  # one shift, like Hugging Face's own
    assert trainer.callback_metrics["val_perplexity"] < 200


@pytest.mark.parametrize(
    ("problem_type", "num_labels"), [("regression", 1), ("multi_label_classification", 3)]
)
def test_regression_and_multi_label_train(problem_type, num_labels, quiet_trainer, toy_data):
    for row in toy_data.rows:
        value = row["labels"].float()
        row["labels"] = value if num_labels == 1 else torch.stack([value, 1 - value, value])
    toy_data.problem_type, toy_data.num_labels, toy_data.label_names = (
        problem_type,
        num_labels,
        None,
    )
    trainer = quiet_trainer(max_epochs=10)
    fit(FineTuningModule(config=CONFIG, learning_rate=3e-3), toy_data, trainer)
    metric = "val_spearman" if num_labels == 1 else "val_f1"
    assert trainer.callback_metrics[metric] > 0.8


def test_a_checkpoint_of_another_model_is_refused_by_name(toy_data, quiet_trainer, tmp_path):
    trainer = quiet_trainer(max_steps=1)
    fit(FineTuningModule(config=CONFIG), toy_data, trainer)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = FineTuningModule(config={**CONFIG, "num_hidden_layers": 1})
    with pytest.raises(
        InputError, match=r"another model: 16 tensors differ.*layer\.1.*absent here"
    ):
        fit(other, toy_data, quiet_trainer(max_steps=2), ckpt_path=tmp_path / "a.ckpt")


def test_misfits_are_named_before_training(toy_data, quiet_trainer, tiny_bert, tmp_path):
    tiny_bert.save_pretrained(tmp_path / "two")
    toy_data.num_labels, toy_data.label_names = 3, None
    with pytest.raises(InputError, match=r"3 labels.*head for 2.*model\.num_labels: 3"):
        fit(
            FineTuningModule(pretrained=str(tmp_path / "two")), toy_data, quiet_trainer(max_steps=1)
        )
    with pytest.raises(InputError, match=r"3 labels and model\.num_labels is 2"):
        fit(FineTuningModule(config=CONFIG, num_labels=2), toy_data, quiet_trainer(max_steps=1))
    toy_data.num_labels, toy_data.max_length = 2, 17
    with pytest.raises(InputError, match=r"data\.max_length is 17.*at most 16"):
        fit(FineTuningModule(config=CONFIG), toy_data, quiet_trainer(max_steps=1))
    with pytest.raises(InputError, match=r"has no end.*trainer\.max_epochs"):
        fit(FineTuningModule(config=CONFIG), _short(toy_data), quiet_trainer(max_epochs=-1))


def _short(data):
    data.max_length = 8
    return data


def test_a_larger_tokenizer_is_refused(toy_data, quiet_trainer):
    class Tokenizer:
        pad_token_id = bos_token_id = eos_token_id = 0

        def get_vocab(self):
            return {str(token): token for token in range(101)}

    toy_data.tokenizer = Tokenizer()
    with pytest.raises(InputError, match=r"101 tokens and the model 100.*data\.tokenizer"):
        fit(FineTuningModule(config=CONFIG), toy_data, quiet_trainer(max_steps=1))


def test_a_replaced_head_and_a_new_one_start_untrained(
    tiny_bert, toy_data, quiet_trainer, tmp_path
):
    tiny_bert.save_pretrained(tmp_path / "two")
    toy_data.num_labels, toy_data.label_names = 3, None
    module = FineTuningModule(pretrained=str(tmp_path / "two"), num_labels=3, learning_rate=1e-9)
    fit(module, toy_data, quiet_trainer(max_steps=1))
    own, start = weights(module), tiny_bert.state_dict()
    assert own["classifier.weight"].shape == (3, 32)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.allclose(own[name], start[name], atol=1e-6)


@pytest.mark.parametrize("run", ["validate", "test"])
def test_no_metric_is_computed_from_outputs_that_are_not_finite(toy_data, quiet_trainer, run):
    module = fit(FineTuningModule(config=CONFIG), toy_data, quiet_trainer(max_steps=1))
    with torch.no_grad():
        module.model.bert.encoder.layer[1].output.dense.bias[0] = torch.inf
    with pytest.raises(
        InputError, match=r"not finite.*first those of bert\.encoder\.layer\.1\.out"
    ):
        getattr(quiet_trainer(), run)(module, toy_data)
