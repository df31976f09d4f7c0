"""Forward hooks that last as long as a context: read or replace arguments and outputs of modules.

All hooks are removed at the end of the context, also after an error.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        inputs: positional arguments.
        keywords: keyword arguments.
        output: what ``forward`` returned; None before it has run.
    """

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any = None

    @property
    def hidden(self) -> Tensor:
        """Hidden states [B, S, H] that a transformer layer was called with."""
        states: Tensor = self.inputs[0] if self.inputs else self.keywords["hidden_states"]
        return states

    @property
    def hidden_output(self) -> Tensor:
        """Hidden states [B, S, H] that a transformer layer returned, alone or in a tuple."""
        states: Tensor = self.output[0] if isinstance(self.output, tuple) else self.output
        return states


Hook = Callable[[Call], Any]


@contextmanager
def before_calls(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Run a function before every call of a module.

    Args:
        hooks: pairs of a module and a function; a tuple that it returns replaces the positional
            arguments.
    """

    def adapted(hook: Hook) -> Callable[..., Any]:
        def pre_hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            changed = hook(Call(inputs, keywords))
            return None if changed is None else (changed, keywords)

        return pre_hook

    with ExitStack() as stack:
        for module, hook in hooks:
            handle = module.register_forward_pre_hook(adapted(hook), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def after_calls(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Run a function after every call of a module.

    Args:
        hooks: pairs of a module and a function; a value that it returns replaces the output.
    """

    def adapted(hook: Hook) -> Callable[..., Any]:
        def forward_hook(
            module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any
        ) -> Any:
            return hook(Call(inputs, keywords, output))

        return forward_hook

    with ExitStack() as stack:
        for module, hook in hooks:
            handle = module.register_forward_hook(adapted(hook), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def captured(modules: Iterable[nn.Module]) -> Iterator[list[list[Call]]]:
    """Keep every call of some modules, with its tensors as they are: nothing is detached.

    Yields:
        One list for each module, in their order, which grows by one :class:`Call` at each call.
    """
    modules = list(modules)
    calls: list[list[Call]] = [[] for _ in modules]
    with after_calls((module, found.append) for module, found in zip(modules, calls, strict=True)):
        yield calls
