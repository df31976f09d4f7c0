"""Options that are passed on are those of the parent: the same names and types."""

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from lightning_compress import callbacks
from lightning_compress.callbacks.gradual_pruning import GradualPruning, PruningOptions
from lightning_compress.data import LanguageModelingDataModule, TextClassificationDataModule
from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.options import TextDataOptions
from lightning_compress.distillation import AttentionMaps, HiddenStates, Relations
from lightning_compress.errors import InputError
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.modules.options import DistillationOptions, FineTuningOptions
from lightning_compress.quantization import QuantizationConfig


def own_options(cls: type) -> dict[str, Any]:
    initializer: Any = cls.__init__  # type: ignore[misc]  # of a class, not of an instance
    keywords = inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(initializer).parameters.values()
    hints = get_type_hints(initializer)
    return {one.name: hints[one.name] for one in parameters if one.kind == keywords}


@pytest.mark.parametrize(
    ("cls", "typed_dict", "but"),
    [
        (TextDataModule, TextDataOptions, {}),
        (GradualPruning, PruningOptions, {}),
        (FineTuningModule, FineTuningOptions, {}),
        (DistillationModule, DistillationOptions, {"teacher": str | None}),
    ],
)
def test_typed_options_are_those_of_the_class(
    cls: type, typed_dict: type, but: dict[str, Any]
) -> None:
    inherited = own_options(FineTuningModule) if issubclass(cls, DistillationModule) else {}
    assert get_type_hints(typed_dict) | but == inherited | own_options(cls)


CHOICES: list[tuple[Callable[..., Any], dict[str, Any], list[str]]] = [
    (callbacks.EncoderBlockSubstitution, {}, ["selection", "initialization"]),
    (callbacks.HeadPruning, {"removed_fraction": 0.5}, ["score", "unit"]),
    (callbacks.NeuronPruning, {"removed_fraction": 0.5}, ["score", "unit"]),
    (callbacks.StructuredPruning, {"removed_macs_fraction": 0.5}, ["score", "unit"]),
    (callbacks.LayerPruning, {"removed_count": 1}, ["score", "unit"]),
    (
        callbacks.IterativeMagnitudePruning,
        {"sparsity": 0.5},
        ["schedule", "unit", "scope", "rewind"],
    ),
    (FineTuningModule, {"pretrained": "x"}, ["task", "problem_type", "schedule"]),
    (DistillationModule, {"teacher": "x"}, ["task", "problem_type", "schedule", "teacher_cache"]),
    (LanguageModelingDataModule, {}, ["objective"]),
    (TextClassificationDataModule, {}, ["train_on"]),
    (AttentionMaps, {}, ["layers"]),
    (HiddenStates, {}, ["layers"]),
    (Relations, {}, ["layers"]),
    (QuantizationConfig, {}, ["scheme", "observer"]),
]


@pytest.mark.parametrize(
    ("cls", "options", "name"),
    [(cls, options, name) for cls, options, names in CHOICES for name in names],
)
def test_an_unknown_choice_is_refused_by_the_constructor(
    cls: Callable[..., Any], options: dict[str, Any], name: str
) -> None:
    with pytest.raises(InputError, match="banana"):
        cls(**options, **{name: "banana"})


def test_every_closed_choice_of_a_callback_is_tested() -> None:
    tested = {(cls.__name__, name) for cls, _, names in CHOICES for name in names}
    for name in callbacks.__all__:
        cls = getattr(callbacks, name)
        for option, hint in own_options(cls).items():
            if any(get_origin(one) is Literal for one in (hint, *get_args(hint))):
                assert (name, option) in tested
