"""Gates on heads and neurons: factors on what a unit says to the rest of the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def gated(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply units by gates while the context lasts.

    The gates sit on the inputs of the output projections, so that they work with every
    implementation of attention.

    Args:
        model: a transformer of a known family.
        gates: by name of the projection (``Units.output``), for its units in order: [U], or [B, U]
            with factors of its own for every example of the batch.
    """
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(_multiply_by(gate))
        for name, gate in gates.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _multiply_by(gate: Tensor):  # type: ignore[no-untyped-def]  # a hook, for torch alone
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        said, *rest = inputs
        units = said.reshape(*said.shape[:-1], gate.shape[-1], -1)
        # [B, U] to [B, 1, ..., U, 1], to stand beside [B, S, U, W]
        factors = gate.reshape(*gate.shape[:-1], *(1,) * (units.dim() - gate.dim() - 1), -1, 1)
        return ((units * factors).flatten(-2).to(said.dtype), *rest)

    return hook
