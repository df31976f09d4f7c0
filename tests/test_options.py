"""Options that are passed on are those of the parent: the same names and types."""

import inspect
from typing import Any, get_type_hints

import pytest

from lightning_compress.callbacks.gradual_pruning import GradualPruning, PruningOptions
from lightning_compress.data.datamodule import TextDataModule
from lightning_compress.data.options import TextDataOptions
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.modules.distillation import DistillationOptions
from lightning_compress.modules.fine_tuning import FineTuningOptions


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
