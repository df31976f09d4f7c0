"""The projections of heads and neurons in a block, found by what depends on what.

A block runs with the outputs of its linear layers replaced by random leaves of autograd's graph.
The gradient at the input of a layer is then zero but at the rows, and the tokens, that it depends
on with no linear layer between. A layer whose input depends on other linear layers only, and not on
what the block was called with, is one behind heads or neurons; behind heads it depends on other
tokens too.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_compress.models.families import Projections
from lightning_compress.models.hooks import Call, after_calls


class NotDerivedError(Exception):
    """A structure is none that an entry of ``FAMILIES`` can describe."""


def linear_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The linear layers in a module by name, in the order of their definition."""
    from transformers.pytorch_utils import Conv1D

    return {n: one for n, one in module.named_modules() if isinstance(one, nn.Linear | Conv1D)}


@dataclass(frozen=True)
class BlockTrace:
    """One call of a block whose linear layers gave leaves of the graph instead of outputs.

    ``hidden`` [1, S, H] is what the block was called with, ``entered`` what each of its linear
    layers was called with, and ``left`` the leaves [1, S, R]; by name and by call.
    """

    hidden: Tensor
    entered: dict[str, list[Tensor]]
    left: dict[str, list[Tensor]]

    @classmethod
    def of(cls, block: nn.Module, call: Call) -> "BlockTrace":
        """Run a block with the arguments that it was called with in the model."""
        linears = linear_layers(block)
        trace = cls(
            hidden=call.hidden.detach().requires_grad_(),
            entered={name: [] for name in linears},
            left={name: [] for name in linears},
        )

        def kept(name: str) -> Callable[[Call], Tensor]:
            def hook(call: Call) -> Tensor:
                trace.entered[name].append(call.inputs[0])
                # Positive, so that no ReLU hides what depends on it.
                leaf = (torch.rand_like(call.output) + 0.5).requires_grad_()
                trace.left[name].append(leaf)
                return leaf.clone()  # a leaf cannot be changed in place

            return hook

        given = (trace.hidden, *call.inputs[1:]) if call.inputs else ()
        keywords = call.keywords if call.inputs else call.keywords | {"hidden_states": trace.hidden}
        with torch.enable_grad(), after_calls((one, kept(n)) for n, one in linears.items()):
            block(*given, **keywords)
        return trace

    @cached_property
    def ends(self) -> dict[str, list[str]]:
        """Layers whose inputs bypass nothing: with the layers that they depend on directly."""
        found = {}
        for name, entered in self.entered.items():
            before = [one for one in self.left if self._depends(name, self.left[one])]
            if entered and before and not self.is_fed(name):
                found[name] = before
        return found

    def is_fed(self, name: str) -> bool:
        """Whether a layer sees what the block was called with, by no linear layer."""
        return self._depends(name, [self.hidden])

    def _depends(self, name: str, leaves: list[Tensor]) -> bool:
        values = [value.sum() for value in self.entered[name] if value.requires_grad]
        if not values or not leaves:
            return False
        total = torch.stack(values).sum()
        gradients = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        return any(one is not None for one in gradients)

    def reached(self, name: str, leaf: str, channel: int, *, token: int = -1) -> Tensor:
        """Which tokens and rows of a layer [S, R] a channel of another one's input depends on."""
        value = self.entered[name][0].flatten(0, -2)[token, channel]
        given = self.left[leaf][0]
        (found,) = torch.autograd.grad(value, given, retain_graph=True, allow_unused=True)
        found = torch.zeros_like(given) if found is None else found
        return found.flatten(0, -2) != 0


def projections_of(trace: BlockTrace) -> tuple[Projections, int, Projections, int]:
    """Projections of the heads and the size of one, projections of the neurons and their number."""
    mixing = {
        end: any(trace.reached(end, one, 0)[:-1].any() for one in before if trace.is_fed(one))
        for end, before in trace.ends.items()
    }
    if sorted(mixing.values()) != [False, True]:
        found = ", ".join(f"{n} ({'' if m else 'not '}across tokens)" for n, m in mixing.items())
        raise NotDerivedError(
            "a layer should have one linear layer behind its heads and one behind its neurons, and "
            f"has: {found or 'none'}"
        )
    neurons = next(end for end, mixes in mixing.items() if not mixes)
    heads = next(end for end, mixes in mixing.items() if mixes)
    return *_heads_of(trace, heads), *_neurons_of(trace, neurons)


def _neurons_of(trace: BlockTrace, output: str) -> tuple[Projections, int]:
    inputs, width = trace.ends[output], trace.entered[output][0].shape[-1]
    parts = trace.left[inputs[0]][0].shape[-1] // width

    def rows(name: str, channel: int) -> list[int]:
        return [part * width + channel for part in range(parts)]

    _require_rows(trace, output, inputs, rows)
    return Projections(tuple(inputs), output, parts), width


def _heads_of(trace: BlockTrace, output: str) -> tuple[Projections, int]:
    relative = tuple(name for name in trace.ends[output] if not trace.is_fed(name))
    inputs = [name for name in trace.ends[output] if name not in relative]
    width = trace.entered[output][0].shape[-1]
    seen = {name: trace.reached(output, name, 0) for name in inputs}
    if len(inputs) == 3:  # queries are the token's own; of a value there is one row
        inputs.sort(key=lambda name: (bool(seen[name][:-1].any()), -int(seen[name].any(0).sum())))
    if len(inputs) not in (1, 3):
        raise NotDerivedError(
            "queries, keys and values should be three linear layers or one, and are "
            + ", ".join(inputs)
        )
    parts = 3 if len(inputs) == 1 else 1
    size = int(seen[inputs[0]].any(0)[: width if parts == 3 else None].sum())

    def rows(name: str, channel: int) -> list[int]:
        wide = trace.left[name][0].shape[-1] // parts
        head = (channel // size) // max(1, width // wide)
        whole = [head * size + one for one in range(size)]
        value = [head * size + channel % size]
        if parts == 3:
            return [*whole, *(wide + one for one in whole), *(2 * wide + one for one in value)]
        return value if name == inputs[-1] else whole

    _require_rows(trace, output, [*inputs, *relative], rows)
    return Projections(tuple(inputs), output, parts, relative), size


def _require_rows(
    trace: BlockTrace, output: str, inputs: list[str], rows: Callable[[str, int], list[int]]
) -> None:
    """Compare some of the channels of an input with the rows that they should depend on."""
    width = trace.entered[output][0].shape[-1]
    for name, channel in itertools.product(inputs, {0, 1, width // 2, width - 2, width - 1}):
        found = trace.reached(output, name, channel).any(0).nonzero().flatten().tolist()
        if found != rows(name, channel):
            raise NotDerivedError(
                f"the outputs of {name} do not belong to the inputs of {output} in order, or are "
                f"fused in another way than one after another (input {channel} depends on "
                f"{len(found)} of them, from {found[0] if found else '-'})"
            )
