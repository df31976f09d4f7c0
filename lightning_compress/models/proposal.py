"""Propose an entry of ``FAMILIES`` for a model of a family that has none.

Projections are found by tracing a block (:mod:`~lightning_compress.models.block_trace`), not by
their names. What is proposed is tried before anyone gets it: units that are removed by it must
equal units whose outgoing weights are zero.
"""

import copy
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError, first_line
from lightning_compress.models.block_trace import (
    BlockTrace,
    NotDerivedError,
    linear_layers,
    projections_of,
)
from lightning_compress.models.families import FAMILIES, Family
from lightning_compress.models.forward import (
    device_of,
    evaluating,
    known_tokens,
    without_cache,
)
from lightning_compress.models.hooks import captured
from lightning_compress.models.layers import remove_layers_, skipped
from lightning_compress.models.removal import remove_heads_, remove_neurons_
from lightning_compress.models.structure import outgoing, units_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 7
_TOLERANCE = 1e-4  # of the largest hidden state
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
_NOT_DERIVED = "Look at substitutable, relative_scores and fixed_by, which are not derived."
_NO_INNER = "No field of the configuration has the number of neurons: name it in inner."
_FIXED = (
    "No layer can be removed ({}): fixed_by names fields of the configuration that rule it out."
)
_KEY_VALUE = re.compile("group|key_value|kv")


def propose_family(model: "PreTrainedModel") -> str:
    """Derive an entry of ``FAMILIES`` from a model that reads tokens, and try it.

    Tried are, on a copy, that removed heads and neurons equal such with zero outgoing weights, and
    a removed layer a skipped one, also after loading. Not derived are ``substitutable`` and
    ``fixed_by``, nor scores that depend on relative positions otherwise than by projections or a
    bias that layers share: comments in the entry name what to look at.

    Args:
        model: any Hugging Face transformer with one stack of layers, dense.

    Returns:
        Python code, for the dictionary in ``lightning_compress/models/families.py``.

    Raises:
        InputError: the structure is none that an entry can describe. The message says what was
            found instead.
    """
    base: Any = model.base_model
    what = type(model).__name__
    try:
        with evaluating(base), torch.random.fork_rng():
            torch.manual_seed(0)
            family, optional, remarks = _derived(base)
            family = _tried(base, family, optional)
            remarks += _remarks(base, family)
    except NotDerivedError as error:
        raise InputError(f"no family entry can be derived from {what}: {error}") from error
    lines = [f"    # {line}" for line in remarks]
    entry = _code(family).replace("\n", "\n    ")
    key = json.dumps(base.config.model_type)
    return "\n".join([f"    # Derived from {what}.", *lines, f"    {key}: {entry},\n"])


def _derived(base: Any) -> tuple[Family, dict[str, Any], list[str]]:
    """The entry, attributes that may have to be in ``counts``, too, and remarks."""
    if getattr(base.config, "is_encoder_decoder", False):
        raise NotDerivedError("it has an encoder and a decoder, and an entry describes one stack")
    pattern, names = _blocks(base)
    block = base.get_submodule(names[min(1, len(names) - 1)])  # the first may lack a norm
    try:
        with captured([block]) as (calls,), torch.no_grad():
            _run(base)
        trace = BlockTrace.of(block, calls[0])
    except _FAILURES as error:
        raise NotDerivedError(
            f"it does not run on token ids alone ({first_line(error)})"
        ) from error
    heads, head_size, neurons, count = projections_of(trace)
    attention = heads.inputs[0].rpartition(".")[0]
    while not all(name.startswith(f"{attention}.") for name in heads.inputs):
        attention = attention.rpartition(".")[0]
    width = trace.entered[heads.output][0].shape[-1]
    module = block.get_submodule(attention)
    attribute, counts, optional = _sizes(module, head_size, width)
    bias = _shared_bias(base, module, width // head_size)
    inner = _inner(base.config, count)
    first = dict(base.get_submodule(names[0]).named_modules())
    found = Family(
        blocks=pattern,
        heads=heads,
        neurons=neurons,
        attention=attention,
        head_size=attribute,
        counts=counts,
        shared=len(calls) > 1,
        inner=inner or "intermediate_size",
        norm_first=not torch.equal(trace.entered[heads.inputs[0]][0].detach(), trace.hidden),
        causal=not trace.reached(heads.output, heads.inputs[-1], 0, token=0)[1:].any(),
        relative_scores=bool(heads.relative) or bias is not None,
        shared_bias=bias,
        not_in_first=tuple(
            name
            for name, one in block.named_modules()
            if isinstance(first.get(name), nn.Identity) and not isinstance(one, nn.Identity)
        ),
    )
    return found, optional, [] if inner else [_NO_INNER]


def _blocks(base: nn.Module) -> tuple[str, list[str]]:
    """The pattern of the blocks' names, and the names, of a model's only stack of layers."""
    stacks: list[str] = []
    for name, module in base.named_modules():
        inside = any(name.startswith(f"{stack}.") for stack in stacks)
        if _is_stack(module) and not inside:
            stacks.append(name)
    if len(stacks) != 1:
        found = ", ".join(stacks) or "none"
        raise NotDerivedError(f"it should have one list of like layers, and has: {found}")
    pattern = f"{stacks[0]}.*"
    item = base.get_submodule(f"{stacks[0]}.0")
    while True:  # a layer may hold nothing but a list of layers, as a group of ALBERT's does
        parts = [name for name, one in item.named_children() if any(True for _ in one.parameters())]
        if len(parts) != 1 or not _is_stack(item.get_submodule(parts[0])):
            break
        pattern += f".{parts[0]}.*"
        item = item.get_submodule(f"{parts[0]}.0")
    expression = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
    return pattern, [name for name, _ in base.named_modules() if expression.fullmatch(name)]


def _is_stack(module: nn.Module) -> bool:
    """Whether it is a list of modules of one class with what attention and neurons need."""
    if not isinstance(module, nn.ModuleList) or len(module) == 0:
        return False
    return len({type(one) for one in module}) == 1 and len(linear_layers(module[0])) >= 4


def _run(base: Any) -> Tensor:
    """Hidden states [1, S, H] of some tokens that are not special."""
    tokens = known_tokens(base)
    if tokens is None or base.main_input_name != "input_ids":
        raise NotDerivedError("it reads no token ids")
    ids = (torch.arange(_TOKENS) + max(0, tokens - 3 * _TOKENS)) % tokens
    ids = ids[None].to(device_of(base))
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **without_cache(base)}
    found: Tensor = base(**options, return_dict=True)[0]
    return found


def _sizes(attention: nn.Module, size: int, width: int) -> tuple[str, dict[str, Any], Any]:
    """The attribute with the size of a head, those with counts, and those that may be needed."""
    values = {name: value for name, value in vars(attention).items() if type(value) is int}
    sizes = [
        name for name, value in values.items() if value == size and re.search("dim|size", name)
    ]
    sizes.sort(key=lambda name: ("head" not in name, "all" in name))
    if not sizes:
        raise NotDerivedError(
            f"no attribute of {type(attention).__name__} has the size of a head, {size}"
        )
    kinds = {width // size: "heads", width: "width"}
    rest = {n: kinds[v] for n, v in values.items() if v in kinds and n != sizes[0]}
    sure = {n: kind for n, kind in rest.items() if "head" in n and not _KEY_VALUE.search(n)}
    return sizes[0], sure, {n: kind for n, kind in rest.items() if n not in sure}


def _shared_bias(base: Any, attention: nn.Module, heads: int) -> str | None:
    """The argument of the attention with a bias for each head."""
    with captured([attention]) as (calls,), torch.no_grad():
        _run(base)
    signature = inspect.signature(attention.forward)
    given = signature.bind(*calls[0].inputs, **calls[0].keywords).arguments
    shape = (heads, _TOKENS, _TOKENS)
    for name, value in given.items():
        if isinstance(value, Tensor) and value.shape[1:] == shape and "mask" not in name:
            return name
    return None


def _inner(config: Any, neurons: int) -> str | None:
    """The configuration's field for the number of neurons, if one can be told."""
    names = [n for n, value in config.to_dict().items() if value == neurons and "position" not in n]
    likely = [name for name in names if re.search("intermediate|inner|ffn|ff_|hidden_dim", name)]
    return likely[0] if likely else None


def _tried(base: Any, family: Family, optional: Mapping[str, Any]) -> Family:
    """The entry with as few of the optional counts as it works with."""
    problem = ""
    for number in range(3):
        for extra in itertools.combinations(optional.items(), number):
            entry = replace(family, counts={**family.counts, **dict(extra)})
            found = _problem(base, entry)
            if found is None:
                return entry
            problem = problem or found
    raise NotDerivedError(problem)


@contextmanager
def _known(base: Any, family: Family) -> Iterator[Any]:
    """A copy of the model whose family has an entry while the context lasts."""
    key = base.config.model_type
    before = FAMILIES.get(key)
    FAMILIES[key] = family
    try:
        yield copy.deepcopy(base).float()
    finally:
        if before is None:
            del FAMILIES[key]
        else:
            FAMILIES[key] = before


def _problem(base: Any, family: Family) -> str | None:
    """What goes wrong when heads and neurons are removed; None if nothing does."""
    for kind, remove_ in (("heads", remove_heads_), ("neurons", remove_neurons_)):
        try:
            with _known(base, family) as model, torch.no_grad():
                every = units_of(model, cast(Any, kind))
                removed = {layer: [every[layer].count // 2] for layer in {0, len(every) - 1}}
                for layer, (unit,) in removed.items():
                    outgoing(model, every[layer])[:, unit] = 0
                expected = _run(model)
                remove_(model, removed)
                if not _close(_run(model), expected):
                    return f"removed {kind} are not what {kind} with zero weights are"
        except (*_FAILURES, InputError) as error:
            return f"{kind} could not be removed ({first_line(error)})"
    return None


def _close(found: Tensor, expected: Tensor) -> bool:
    limit = _TOLERANCE * float(expected.abs().max())
    return torch.allclose(found, expected, rtol=0, atol=limit)


def _remarks(base: Any, family: Family) -> list[str]:
    """What the person who adds the entry has to look at."""
    if family.shared:
        return [_NOT_DERIVED]
    try:
        with _known(base, family) as model, torch.no_grad():
            with skipped(model, [0]):
                expected = _run(model)
            remove_layers_(model, [0])
            # As after loading: what a layer computes from its number is computed anew.
            loaded = type(model)(model.config).eval().to(device_of(model))
            loaded.load_state_dict(model.state_dict())
            if _close(_run(model), expected) and _close(_run(loaded), expected):
                return [_NOT_DERIVED]
            problem = "the model is not what it is without running the layer"
    except (*_FAILURES, InputError) as error:
        problem = first_line(error)
    return [_NOT_DERIVED, _FIXED.format(problem)]


def _code(value: Any) -> str:
    """Python code of an entry, without what is at its default."""
    if is_dataclass(value):
        given = [(one.name, one, getattr(value, one.name)) for one in fields(value)]
        parts = [
            f"{name}={_code(now)},"
            for name, one, now in given
            if now != one.default and not (now == {} and name == "counts")
        ]
        inside = "\n".join(parts).replace("\n", "\n    ")
        return f"{type(value).__name__}(\n    {inside}\n)"
    if isinstance(value, tuple):
        return f"({', '.join(map(_code, value))}{',' * (len(value) == 1)})"
    return repr(value) if isinstance(value, bool) else json.dumps(value)
