import copy
from pathlib import Path

import jsonargparse
import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_compress.callbacks import IterativeMagnitudePruning
from lightning_compress.models import set_masks_
from lightning_compress.models.masks import masks_of
from lightning_compress.modules import FineTuningModule
from lightning_compress.saving import load_compressed, save_compressed

WEIGHTS = ["net.*.weight"]
COUNT = 416  # entries in them
BERT = {
    "model_type": "bert", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 16,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2,
    "n_positions": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip

# Lightning offers this with a GPU only; torch has it on the CPU as well.
FP16 = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0))


def pruning(**options):
    return IterativeMagnitudePruning(**{"sparsity": 0.7, "weights": WEIGHTS, **options})


def at_once(**options):
    return pruning(schedule="one_shot", warmup=0, **options)


def zeros(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


def assert_plain_zero(weights, masks):
    assert masks
    for name, mask in masks.items():
        pruned = weights[name][~mask]
        assert torch.equal(pruned, torch.zeros_like(pruned)), name
        assert not torch.signbit(pruned).any(), name


class Watch(L.Callback):
    """Looks at the masks and the weights after every batch."""

    def __init__(self, model_of=lambda module: module):
        self.model_of = model_of
        self.zeros, self.masks = [], []

    def look(self, pl_module):
        model = self.model_of(pl_module)
        masks = masks_of(model)
        self.zeros.append(zeros(masks))
        self.masks.append({name: mask.clone() for name, mask in masks.items()})
        if masks:
            assert_plain_zero(dict(model.named_parameters()), masks)

    def on_train_start(self, trainer, pl_module):
        self.look(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.look(pl_module)


class Notebook(Logger):
    """Keeps what is logged."""

    name, version = "notebook", 0

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        pass


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
        ("Adam", {"weight_decay": 0.1}),
        ("AdamW", {"weight_decay": 0.1, "amsgrad": True}),
    ],
)
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed"},
        {"plugins": FP16},
        {"precision": "bf16-true"},
        {"gradient_clip_val": 0.01},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    ],
    ids=["plain", "accumulation", "bf16-mixed", "16-mixed", "bf16-true", "norm", "value"],
)
def test_pruned_weights_stay_zero_whatever_trains_them(
    plain_module, loader, quiet_trainer, optimizer, options, training
):
    module, watch = plain_module(optimizer, **options), Watch()
    start = copy.deepcopy(module.net)
    trainer = quiet_trainer(
        max_epochs=2, callbacks=[pruning(warmup=2, recovery=1, interval=1, unit="steps"), watch],
        **training,
    )  # fmt: skip
    trainer.fit(module, loader())
    masks = masks_of(module)
    assert zeros(masks) == round(0.7 * COUNT)
    parameters = dict(module.named_parameters())
    for name, mask in masks.items():
        moved = parameters[name] != start.get_parameter(name.removeprefix("net."))
        assert (moved | ~mask).sum() > 0.9 * mask.numel()  # what is kept does train
        state = trainer.optimizers[0].state[parameters[name]]
        moments = [value for value in state.values() if getattr(value, "shape", 0) == mask.shape]
        assert moments
        assert all((moment[~mask] == 0).all() for moment in moments)


def test_kept_weights_train_as_in_a_loop_with_masks_written_by_hand(
    plain_module, loader, quiet_trainer
):
    module, reference = plain_module(weight_decay=0.1), plain_module(weight_decay=0.1)
    quiet_trainer(max_epochs=2, gradient_clip_val=0.05, callbacks=[at_once()]).fit(module, loader())
    weights = [layer.weight for layer in reference.net if isinstance(layer, nn.Linear)]
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    threshold = magnitudes.sort().values[round(0.7 * COUNT) - 1]
    masks = [weight.detach().abs() > threshold for weight in weights]
    optimizer = reference.configure_optimizers()
    for _ in range(2):
        for inputs, targets in loader():
            with torch.no_grad():
                for weight, mask in zip(weights, masks, strict=True):
                    weight[~mask] = 0
            optimizer.zero_grad()
            nn.functional.mse_loss(reference.net(inputs), targets).backward()
            for weight, mask in zip(weights, masks, strict=True):
                assert weight.grad is not None
                weight.grad[~mask] = 0
            nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
            optimizer.step()
    for one, other in zip(module.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, other)


class TwoOptimizers(L.LightningModule):
    """Steps each of two optimizers in every batch by hand."""

    def __init__(self, plain):
        super().__init__()
        self.net = plain.net
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        for optimizer in optimizers:
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(self.net(inputs), targets))
            optimizer.step()
            if masks_of(self):
                assert_plain_zero(dict(self.named_parameters()), masks_of(self))

    def configure_optimizers(self):
        parts = self.net[:2].parameters(), self.net[2:].parameters()
        return [torch.optim.SGD(part, lr=0.1, momentum=0.9) for part in parts]


def test_manual_optimization_with_two_optimizers(plain_module, loader, quiet_trainer):
    watch = Watch()
    callback = pruning(schedule="linear", warmup=2, recovery=2, interval=1, unit="steps")
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback, watch])
    trainer.fit(TwoOptimizers(plain_module()), loader())
    expected = [round(0.7 * min(max(batch - 2, 0), 4) / 4 * COUNT) for batch in range(9)]
    assert watch.zeros == expected


@pytest.mark.parametrize("schedule", ["linear", "cubic"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_sparsity_follows_the_schedule_and_only_grows(
    plain_module, loader, quiet_trainer, schedule, accumulate
):
    watch = Watch()
    callback = pruning(schedule=schedule, warmup=1, recovery=1, interval=0.5, unit="epochs")
    trainer = quiet_trainer(
        max_epochs=4, accumulate_grad_batches=accumulate, callbacks=[callback, watch]
    )
    trainer.fit(plain_module(), loader())
    for batch, found in enumerate(watch.zeros):
        halves = batch // 4 if batch >= 8 else 0  # half epochs that have passed
        progress = min((halves - 2) / 4, 1) if halves else 0
        grown = progress if schedule == "linear" else 1 - (1 - progress) ** 3
        assert found == round(0.7 * grown * COUNT), batch
    for before, after in zip(watch.masks, watch.masks[1:], strict=False):
        assert all(not (after[name] & ~mask).any() for name, mask in before.items())
    assert callback.target_reached


def test_each_layer_can_have_the_same_sparsity(plain_module, loader, quiet_trainer):
    module = plain_module()
    quiet_trainer(max_epochs=1, callbacks=[at_once(scope="layer")]).fit(module, loader())
    found = {name: (int((~mask).sum()), mask.numel()) for name, mask in masks_of(module).items()}
    assert found == {
        "net.0.weight": (round(0.7 * 128), 128),
        "net.2.weight": (round(0.7 * 256), 256),
        "net.4.weight": (round(0.7 * 32), 32),
    }


@pytest.mark.parametrize("config", [BERT, GPT2], ids=["bert", "gpt2"])
def test_a_pattern_holds_along_the_inputs_of_every_layer(toy_data, quiet_trainer, config):
    module, watch = FineTuningModule(config=config), Watch(lambda module: module.model)
    callback = IterativeMagnitudePruning(pattern="2:4", interval=0.2)
    quiet_trainer(max_epochs=2, callbacks=[callback, watch]).fit(module, toy_data)
    masks = masks_of(module.model)
    assert len(masks) == (12 if config is BERT else 8)
    for mask in masks.values():
        by_input = mask if config is BERT else mask.t()  # Conv1D has its inputs first
        assert (by_input.reshape(-1, 4).sum(1) == 2).all()
    assert 0 < watch.zeros[8] < watch.zeros[-1]


def test_by_default_the_blocks_are_pruned_and_the_dense_model_is_kept(
    toy_data, quiet_trainer, tmp_path
):
    module, trained = FineTuningModule(config=BERT), {}

    class Before(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                trained.update(copy.deepcopy(pl_module.model.state_dict()))

    callback = IterativeMagnitudePruning(sparsity=0.5, schedule="one_shot", warmup=3, unit="steps")
    quiet_trainer(max_epochs=1, callbacks=[Before(), callback]).fit(module, toy_data)
    pruned = {name for name, w in module.model.named_parameters() if (w == 0).sum() > w.numel() / 5}
    assert {name for name in pruned if not name.endswith("bias")} == set(masks_of(module.model))
    assert module.model.state_dict().keys() == trained.keys()
    dense = load_compressed(tmp_path / "dense")
    assert masks_of(dense) == {}
    for name, value in dense.state_dict().items():
        assert torch.equal(value, trained[name])


def test_a_model_that_comes_with_masks_keeps_them_and_they_count(
    tiny_bert, toy_data, quiet_trainer, tmp_path
):
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    other = "bert.pooler.dense.weight"
    mask = torch.rand(64, 32) > 0.5
    set_masks_(tiny_bert, {name: mask, other: torch.rand(32, 32) > 0.5})
    start = save_compressed(tiny_bert, tmp_path / "start")
    module, watch = FineTuningModule(pretrained=str(start)), Watch(lambda module: module.model)
    callback = IterativeMagnitudePruning(sparsity=0.3)
    quiet_trainer(max_epochs=1, callbacks=[callback, watch]).fit(module, toy_data)
    masks = masks_of(module.model)
    assert not (masks[name] & ~mask).any()
    assert torch.equal(masks.pop(other), masks_of(tiny_bert)[other])
    assert zeros(masks) == round(0.3 * sum(mask.numel() for mask in masks.values()))
    assert watch.zeros[0] == zeros(masks_of(tiny_bert))


def test_zero_sparsity_is_the_dense_run(plain_module, loader, quiet_trainer, tmp_path):
    module, dense = plain_module(), plain_module()
    callback = pruning(sparsity=0.0)
    quiet_trainer(max_epochs=2, callbacks=[callback]).fit(module, loader())
    quiet_trainer(max_epochs=2).fit(dense, loader())
    assert callback.target_reached
    assert masks_of(module) == {}
    for one, other in zip(module.parameters(), dense.parameters(), strict=True):
        assert torch.equal(one, other)


def test_checkpoints_of_every_step_hold_exact_zeros_and_nothing_new(
    plain_module, loader, quiet_trainer, tmp_path
):
    module = plain_module()
    keys = list(module.state_dict())
    every = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    quiet_trainer(max_epochs=1, enable_checkpointing=True, callbacks=[every, pruning()]).fit(
        module, loader()
    )
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 8
    found = set()
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        assert list(checkpoint["state_dict"]) == keys
        fresh, callback = plain_module(seed=1), pruning()
        callback.setup(quiet_trainer(callbacks=[callback]), fresh, "fit")
        fresh.on_load_checkpoint(checkpoint)
        if masks_of(fresh):
            assert_plain_zero(checkpoint["state_dict"], masks_of(fresh))
        found.add(zeros(masks_of(fresh)))
    assert len(found) > 4
    assert max(found) == round(0.7 * COUNT)


def test_the_best_checkpoint_is_one_that_reached_the_target(
    plain_module, loader, quiet_trainer, tmp_path
):
    best = ModelCheckpoint(tmp_path, monitor="score", mode="max")
    trainer = quiet_trainer(
        max_epochs=5, enable_checkpointing=True, callbacks=[best, pruning(recovery=0.5)]
    )
    trainer.fit(plain_module(judged=True), loader(), loader())
    checkpoint = torch.load(best.best_model_path, weights_only=True)
    # The score falls all the time, so the best is the first that counts: the target comes at 20.
    assert checkpoint["global_step"] == 24
    assert checkpoint["callbacks"]["IterativeMagnitudePruning"]["target_reached"]


def test_masks_are_restored_for_testing(plain_module, loader, quiet_trainer, tmp_path):
    module, fresh = plain_module(), plain_module(seed=1)
    trainer = quiet_trainer(max_epochs=1, callbacks=[at_once()])
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fresh.test_step = fresh.training_step
    trainer = quiet_trainer(callbacks=[at_once()])
    trainer.test(fresh, loader(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert zeros(masks_of(fresh)) == round(0.7 * COUNT)
    for name, mask in masks_of(module).items():
        assert torch.equal(masks_of(fresh)[name], mask)


def test_sparsity_is_logged_at_the_start_at_updates_and_at_the_end(
    plain_module, loader, quiet_trainer
):
    notebook, module = Notebook(), plain_module()
    callback = pruning(schedule="linear", warmup=2, recovery=2, interval=2, unit="steps")
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback], logger=notebook)
    trainer.fit(module, loader())
    lines = [(step, line) for step, line in notebook.lines if "sparsity/total" in line]
    assert [step for step, _ in lines] == [0, 2, 4, 6, 8]
    totals = [line["sparsity/total"] * COUNT for _, line in lines]
    assert totals == pytest.approx([0, 0, round(0.35 * COUNT), round(0.7 * COUNT), 291])
    last = lines[-1][1]
    for layer in ("net.0", "net.2", "net.4"):
        weight = module.get_parameter(f"{layer}.weight")
        assert last[f"sparsity/{layer}"] == pytest.approx(float((weight == 0).float().mean()))
    assert len(last) == 4


def test_a_run_that_ends_too_soon_warns(plain_module, loader, quiet_trainer):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 3

    callback = pruning()
    with pytest.warns(UserWarning, match="ended at step 3, before its target at step"):
        quiet_trainer(max_epochs=1, callbacks=[callback, Stop()]).fit(plain_module(), loader())
    assert not callback.target_reached


def test_optimizers_have_no_hooks_afterwards(plain_module, loader, quiet_trainer):
    trainer = quiet_trainer(max_epochs=1, callbacks=[pruning()])
    trainer.fit(plain_module(), loader())
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


def test_every_option_can_be_written_in_yaml(tmp_path):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.Callback, "callback")
    (tmp_path / "callback.yaml").write_text(
        """
        class_path: lightning_compress.callbacks.IterativeMagnitudePruning
        init_args:
          schedule: linear
          warmup: 1
          recovery: 4.5
          interval: 0.25
          unit: epochs
          scope: layer
          weights: ["*.attention.*.weight", "*.output.dense.weight"]
          pattern: "2:4"
          rewind: learning_rate
        """
    )
    config = parser.parse_args([f"--callback={Path(tmp_path) / 'callback.yaml'}"])
    callback = parser.instantiate(config).callback
    assert isinstance(callback, IterativeMagnitudePruning)
    assert callback._phases.recovery == 4.5
