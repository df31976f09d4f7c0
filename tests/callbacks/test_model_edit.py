"""What all callbacks that edit a model share: fits after fits, resuming, other callbacks."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from transformers.optimization import Adafactor as TransformersAdafactor

from lightning_compress.callbacks import HeadPruning
from lightning_compress.callbacks.model_edit import shortfalls
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, units_of
from lightning_compress.models.masks import masks_of

from ..invariants.techniques import TECHNIQUES
from .conftest import Foreign

POST_TRAINING = ("post-training pruning", "post-training quantization")
EDITS = (
    "magnitude",
    "heads",
    "neurons",
    "heads and neurons",
    "layers",
    "substitution",
    "quantization-aware",
    *POST_TRAINING,
)


def edit_of(technique: str) -> Any:
    """Its callback."""
    (callback,) = TECHNIQUES[technique].callbacks()
    return callback


each_edit = pytest.mark.parametrize("edit", EDITS)


@each_edit
def test_one_callback_for_several_fits_starts_anew_for_each(
    edit: str, toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    callback = edit_of(edit)
    states = []
    for _ in range(2):
        module = Foreign()
        quiet_trainer(max_epochs=1, callbacks=[callback]).fit(module, toy_data)
        assert callback.target_reached
        assert manifest_of(module.net)
        states.append({name: value.clone() for name, value in module.state_dict().items()})
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_the_same_trainer_goes_on_with_the_same_module(
    toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    callback, module = edit_of("heads"), Foreign()
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback])
    trainer.fit(module, toy_data)
    left = sum(one.count for one in units_of(module.net, "heads"))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, toy_data)
    assert trainer.global_step == 16
    assert sum(one.count for one in units_of(module.net, "heads")) == left


@pytest.mark.parametrize("edit", [one for one in EDITS if one not in POST_TRAINING])
def test_a_resumed_run_has_the_options_that_it_began_with(
    edit: str, toy_data: Any, quiet_trainer: Callable[..., L.Trainer], tmp_path: Any
) -> None:
    trainer = quiet_trainer(max_epochs=1, callbacks=[edit_of(edit)])
    trainer.fit(Foreign(), toy_data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    changed = edit_of(edit)
    name = "sparsity" if edit == "magnitude" else "calibration_examples"
    changed.hparams[name] = 0.75
    assert saved["callbacks"][changed.state_key]["options"][name] != 0.75
    run = quiet_trainer(max_epochs=2, callbacks=[changed])
    with pytest.raises(InputError, match=rf"began with {name}: .* cannot go on with 0.75"):
        run.fit(Foreign(), toy_data, ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert run.global_step == 0


def test_options_are_compared_with_their_defaults(
    toy_data: Any, quiet_trainer: Callable[..., L.Trainer], tmp_path: Any
) -> None:
    options: dict[str, Any] = {"removed_fraction": 0.5, "pruning_steps": 2}
    trainer = quiet_trainer(max_epochs=1, callbacks=[HeadPruning(**options, recovery=0.5)])
    trainer.fit(Foreign(), toy_data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    left_out = quiet_trainer(max_epochs=2, callbacks=[HeadPruning(**options)])
    with pytest.raises(InputError, match=r"began with recovery: 0\.5 and cannot go on with None"):
        left_out.fit(Foreign(), toy_data, ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    default = HeadPruning(**options, recovery=0.5, unit="run", calibration_examples=512)
    run = quiet_trainer(max_epochs=2, callbacks=[default])
    run.fit(Foreign(), toy_data, ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert run.global_step == 16


@each_edit
@pytest.mark.parametrize(
    "averaging", [EMAWeightAveraging, lambda: StochasticWeightAveraging(swa_lrs=1e-3)]
)
def test_averaged_weights_are_refused_at_the_start(
    edit: str,
    averaging: Callable[[], L.Callback],
    toy_data: Any,
    quiet_trainer: Callable[..., L.Trainer],
) -> None:
    trainer = quiet_trainer(max_epochs=1, callbacks=[averaging(), edit_of(edit)])
    with pytest.raises(InputError, match="WeightAveraging would be those of another model"):
        trainer.fit(Foreign(), toy_data)
    assert trainer.global_step == 0


class With(Foreign):
    """The same with another optimizer."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.optimizer = optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "transformers": lambda p: TransformersAdafactor(p, lr=1e-3, relative_step=False),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("edit", ["heads", "heads and neurons", "layers"])
def test_optimizers_of_any_state_follow(
    edit: str, optimizer: str, toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    module = With(OPTIMIZERS[optimizer])
    quiet_trainer(max_epochs=1, callbacks=[edit_of(edit)]).fit(module, toy_data)
    state = module.optimizers().state  # type: ignore[union-attr]
    parameters = set(module.parameters())
    assert set(state) <= parameters
    assert all(torch.isfinite(parameter).all() for parameter in parameters)


def test_factored_state_is_cut_with_its_rows_and_columns(tiny_bert: Any) -> None:
    from lightning_compress.models import remove_neurons_

    optimizer = torch.optim.Adafactor(tiny_bert.parameters(), lr=1e-3)
    ids = torch.randint(8, 90, (4, 8))
    tiny_bert(ids, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    dense = tiny_bert.bert.encoder.layer[0]
    inner, outer = dense.intermediate.dense.weight, dense.output.dense.weight
    rows = optimizer.state[inner]["row_var"].clone(), optimizer.state[outer]["row_var"].clone()
    columns = optimizer.state[inner]["col_var"].clone(), optimizer.state[outer]["col_var"].clone()
    remove_neurons_(tiny_bert, {0: [0, 3]}, optimizers=[optimizer])
    kept = [one for one in range(len(inner)) if one not in (0, 3)]
    new = optimizer.state[dense.intermediate.dense.weight]
    assert torch.equal(new["row_var"], rows[0][kept])
    assert torch.equal(new["col_var"], columns[0])
    new = optimizer.state[dense.output.dense.weight]
    assert torch.equal(new["row_var"], rows[1])
    assert torch.equal(new["col_var"], columns[1][:, kept])


def test_an_optimizer_with_one_state_for_all_is_refused_at_the_start(
    toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    trainer = quiet_trainer(max_epochs=1, callbacks=[edit_of("heads")])
    with pytest.raises(InputError, match="LBFGS keeps the history"):
        trainer.fit(With(torch.optim.LBFGS), toy_data)


class Taught(Foreign):
    """A frozen teacher stands before the model that is trained."""

    def __init__(self, frozen: bool = True, named: str | None = None) -> None:
        super().__init__()
        student = self.net
        del self.net
        self.teacher = nn.ModuleDict({"net": Foreign(seed=1).net.requires_grad_(not frozen)})
        self.net = student
        if named is not None:
            self.compressed_model = named


@pytest.mark.parametrize("taught", [Taught(), Taught(frozen=False, named="net")])
def test_the_model_that_is_trained_or_named_is_pruned_and_never_its_teacher(
    taught: Taught, toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    before = sum(p.numel() for p in taught.teacher.parameters())
    quiet_trainer(max_epochs=1, callbacks=[edit_of("heads")]).fit(taught, toy_data)
    assert manifest_of(taught.net)
    assert not manifest_of(taught.teacher["net"])
    assert sum(p.numel() for p in taught.teacher.parameters()) == before


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (Taught(frozen=False), "holds 2 Hugging Face models, teacher.net, net, of which 2"),
        (Taught(named="student"), "compressed_model is 'student', which is no Hugging Face model"),
    ],
)
@pytest.mark.parametrize("edit", ["magnitude", "heads", "post-training quantization"])
def test_several_models_that_could_be_meant_are_refused(
    edit: str,
    module: Taught,
    match: str,
    toy_data: Any,
    quiet_trainer: Callable[..., L.Trainer],
) -> None:
    trainer = quiet_trainer(max_epochs=1, callbacks=[edit_of(edit)])
    with pytest.raises(InputError, match=match):
        trainer.fit(module, toy_data)
    assert trainer.global_step == 0


@pytest.mark.parametrize("start", ["ddp_spawn", "ddp_fork"])
def test_processes_that_return_weights_only_are_refused(
    start: str, toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    callback = edit_of("magnitude")
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback], devices=2, strategy=start)
    with pytest.raises(InputError, match=r"started by (spawn|fork) return weights"):
        callback.setup(trainer, Foreign(), "fit")


def test_a_run_that_ends_before_the_target_says_so(
    toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    callback = edit_of("magnitude")
    stop = EarlyStopping(monitor="score", mode="max", patience=1)  # the score falls
    trainer = quiet_trainer(max_epochs=8, callbacks=[stop, callback])
    with pytest.warns(UserWarning, match="ended at step 16, before its target at step 45"):
        trainer.fit(Foreign(), toy_data)
    assert len(shortfalls(trainer)) == 1
    assert "IterativeMagnitudePruning: the run ended at step 16" in shortfalls(trainer)[0]


def test_a_sparse_model_that_is_trained_without_its_masks_loses_them(
    toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    module = Foreign()
    quiet_trainer(max_epochs=1, callbacks=[edit_of("magnitude")]).fit(module, toy_data)
    assert masks_of(module.net)
    quiet_trainer(max_epochs=1).fit(module, toy_data)
    trained = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.warns(UserWarning, match="trained without their masks, which are dropped"):
        quiet_trainer(max_epochs=0, callbacks=[edit_of("magnitude")]).fit(module, toy_data)
    assert not masks_of(module.net)
    assert not manifest_of(module.net)
    for name, value in module.state_dict().items():
        assert torch.equal(value, trained[name])
