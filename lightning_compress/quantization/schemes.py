"""The precisions by name."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from lightning_compress.errors import InputError

SchemeName = Literal["bf16", "fp16", "int8-weight", "int4-weight", "int8-dynamic", "int8-static"]
Activations = Literal["float", "dynamic", "static"]


@dataclass(frozen=True)
class Scheme:
    """What a model is quantized to.

    Args:
        bits: of the weights of linear layers; those of embeddings have eight. 16: all is cast.
        activations: how the inputs of linear layers are rounded: not, in steps of each token's own,
            or in steps found once on calibration examples.
        dtype: what all is cast to, of 16 bits only.
    """

    bits: int
    activations: Activations = "float"
    dtype: torch.dtype | None = None


SCHEMES: dict[str, Scheme] = {
    "bf16": Scheme(16, dtype=torch.bfloat16),
    "fp16": Scheme(16, dtype=torch.float16),
    "int8-weight": Scheme(8),
    "int4-weight": Scheme(4),
    "int8-dynamic": Scheme(8, "dynamic"),
    "int8-static": Scheme(8, "static"),
}


Observer = Literal["minmax", "percentile", "mse"]


@dataclass(frozen=True)
class Options:
    """How a scheme of whole numbers is carried out.

    Args:
        group: how many weights of four bits share a step.
        observer: how the steps of ``int8-static`` are found: ``minmax``, ``percentile``, ``mse``.
        smooth: strength of SmoothQuant, between 0 and 1; None: none.
        symmetric: whether the steps of ``int8-static`` are counted from zero, as TensorRT needs it.
        keep: names of modules that stay in floating point.

    Raises:
        InputError: an option is out of range.
    """

    group: int = 32
    observer: Observer = "mse"
    smooth: float | None = None
    symmetric: bool = False
    keep: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.group < 2 or self.group % 2:
            raise InputError(f"group is an even number of weights, not {self.group}")
        if self.observer not in get_args(Observer):
            raise InputError(
                f"observer is one of {', '.join(get_args(Observer))}, not {self.observer!r}"
            )
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise InputError(f"smooth is a strength between 0 and 1, not {self.smooth}")


def scheme_named(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        InputError: there is none.
    """
    if name not in SCHEMES:
        raise InputError(f"there is no scheme {name!r}; there are {', '.join(SCHEMES)}")
    return SCHEMES[name]


def needs_examples(scheme: str, options: Options) -> bool:
    """Whether a scheme has to see calibration examples."""
    return scheme_named(scheme).activations == "static" or options.smooth is not None
