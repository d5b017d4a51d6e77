"""Forward passes of modules in which what activations give is replaced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

from prunekit.model.traced_forward import TracedForward
from prunekit.quantization.catalog import INPUT, Catalog

Forward = Callable[..., Any]
Replacement = Callable[[Any], Any]


def forward_passes(catalog: Catalog, replace: Mapping[str, Replacement]) -> dict[Module, Forward]:
    """Module -> a forward pass in which what these activations give goes through a function first.

    Args:
        catalog: where the activations are.
        replace: activation, by its name without wrappers -> the function.
    """
    found = {name: replace[short] for name, short in catalog.unwrapped_names.items() if short in replace}
    forwards = _with_functions(catalog, found)
    for name in found:
        if name in catalog.modules and name != INPUT:
            module = catalog.modules[name]
            # On top of what was replaced inside: an activation of one's own may call others.
            forwards[module] = _then(forwards.get(module, type(module).forward), found[name])
    if INPUT in found:
        model = catalog.modules[INPUT]
        forwards[model] = _with_inputs(forwards.get(model, type(model).forward), found[INPUT])
    return forwards


def _with_functions(catalog: Catalog, replace: Mapping[str, Replacement]) -> dict[Module, Forward]:
    """The forward passes that have some of these activation functions and sums in them."""
    # By identity: two traced forward passes are never the same one, and comparing graphs says nothing.
    traced_by_id: dict[int, TracedForward] = {}
    nodes: dict[int, dict[str, Replacement]] = defaultdict(dict)
    for name in replace:
        if name in catalog.functions:
            traced, node = catalog.functions[name]
            adds = catalog.quantizable[name].adds  # whole numbers are added too, and are no activations
            traced_by_id[id(traced)] = traced
            nodes[id(traced)][node] = _of_floats(replace[name]) if adds else replace[name]
    return {traced.module: traced.forward(nodes[key]) for key, traced in traced_by_id.items()}


def _then(forward: Forward, function: Replacement) -> Forward:
    """A forward pass whose result goes through a function."""

    def quantized(module: Module, *args: Any, **kwargs: Any) -> Any:
        return function(forward(module, *args, **kwargs))

    return quantized


def _with_inputs(forward: Forward, function: Replacement) -> Forward:
    """A forward pass whose inputs, those of floating numbers, go through a function first."""
    change = _of_floats(function)

    def quantized(module: Module, *args: Any, **kwargs: Any) -> Any:
        return forward(module, *map(change, args), **{key: change(value) for key, value in kwargs.items()})

    return quantized


def _of_floats(function: Replacement) -> Replacement:
    """The function for tensors of floating numbers; all else stays as it is."""

    def change(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return change
