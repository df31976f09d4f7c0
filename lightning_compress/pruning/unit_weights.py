"""The weights of a head or a neuron: what it listens with, and what it says."""

from torch import Tensor, nn

from lightning_compress.models.linear import inputs_of, linear_at, output_dim, outputs_of
from lightning_compress.models.structure import Units
from lightning_compress.models.surgery import positions_of


def outgoing(model: nn.Module, units: Units) -> Tensor:
    """Weights by which units reach the rest: [O, U, W], W inputs of the projection to each."""
    weight = outputs_first(linear_at(model, units.output))
    return weight.reshape(len(weight), units.count, -1)


def incoming(model: nn.Module, units: Units) -> list[Tensor]:
    """Weights by which units are reached: of every projection [U, R], R to each unit."""
    found = []
    for name in units.inputs:
        module = linear_at(model, name)
        order = positions_of(range(units.count), outputs_of(module), units.parts, units.count)
        # Parts come one after another: [parts, U, W] to [U, parts * W]
        order = order.reshape(units.parts, units.count, -1).transpose(0, 1).flatten()
        found.append(outputs_first(module)[order].reshape(units.count, -1))
    return found


def outputs_first(module: nn.Linear) -> Tensor:
    """The weight of a linear layer as [outputs, inputs], a view."""
    weight = module.weight.detach()
    return weight if output_dim(module) == 0 else weight.T


def macs_per_token(model: nn.Module, units: Units) -> int:
    """Multiplications by the weights of one unit, for one token."""
    module = linear_at(model, units.output)
    inward = sum(
        outputs_of(linear_at(model, name)) * inputs_of(linear_at(model, name))
        for name in units.inputs
    )
    return (inward + inputs_of(module) * outputs_of(module)) // units.count


def macs_per_pair(model: nn.Module, units: Units) -> int:
    """Multiplications of one unit for a pair of tokens: heads compare, then add up, their width."""
    if units.kind == "neurons":
        return 0
    return 2 * inputs_of(linear_at(model, units.output)) // units.count
