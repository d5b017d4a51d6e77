"""A module's own forward pass, its children as they are, as torch.fx sees it: where activations and sums are in it."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import is_not
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import Module, functional

ACTIVATION_FUNCTIONS = (torch.relu, torch.relu_, functional.relu, functional.relu_, functional.relu6)
ACTIVATION_METHODS = ("relu", "relu_")
SUM_METHODS = ("add", "add_")
_IN_PLACE = (torch.relu_, functional.relu_, "relu_")


@dataclass(frozen=True)
class Traced:
    """A module's own forward pass, its children as they are, as torch.fx sees it in training and in evaluation.

    Attributes:
        module: whose forward pass it is.
        graphs: in training (True) and in evaluation.
        names: its activation functions: node -> kind.
        sums: its sums of two tensors, if in training as in evaluation: node -> kind.
    """

    module: Module
    graphs: Mapping[bool, fx.Graph]
    names: Mapping[str, str]
    sums: Mapping[str, str]

    def forward(self, replace: Mapping[str, Callable[[Any], Any]]) -> Callable[..., Any]:
        """A forward function in which what some activations give, by node name, goes through `replace` first."""
        by_mode = {mode: _with(self.module, graph, replace) for mode, graph in self.graphs.items()}

        def forward(module: Module, *args: Any, **kwargs: Any) -> Any:
            return by_mode[module.training](module, *args, **kwargs)

        return forward


def trace_forward(module: Module) -> Traced:
    """Trace a module, which stays as it is.

    Raises:
        Exception: whatever torch.fx raised, or why a trace would not do what the forward pass does.
    """
    graphs, before, stand_in = {}, _random_states(), _stand_in(module)
    try:
        for training in (True, False):
            stand_in.training = training
            graphs[training] = _OwnForward().trace(stand_in)
    finally:
        drawn = _put_back(before)
    if drawn:
        raise RuntimeError("it draws random numbers that torch.fx would take for constants")
    for graph in graphs.values():
        _must_last(graph)
    names = {node.name: _kind(node) for node in graphs[True].nodes if _is_activation(node)}
    others = {node.name for node in graphs[False].nodes if _is_activation(node)}
    if set(names) != others:
        raise RuntimeError("it calls other activations in training than in evaluation")
    sums, others = _sums(graphs[True]), set(_sums(graphs[False]))
    return Traced(module, graphs, names, {node: kind for node, kind in sums.items() if node in others})


def _stand_in(module: Module) -> Module:
    """A module with the same children, whose own attributes and buffers a forward pass may change."""
    other: Module = object.__new__(type(module))
    vars(other).update(vars(module))
    buffers = {name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
    vars(other)["_buffers"] = buffers
    return other


def _sums(graph: fx.Graph) -> dict[str, str]:
    """Node -> kind, of what adds two values of which one at least comes from the data, and is used."""
    data: set[fx.Node] = set()
    found = {}
    for node in graph.nodes:
        if node.op == "placeholder" or data & set(node.all_input_nodes):
            data.add(node)
            terms = [*node.args, *(node.kwargs.get(key) for key in ("input", "other"))]
            if _adds(node) and node.users and sum(isinstance(term, fx.Node) for term in terms) > 1:
                found[node.name] = _kind(node)
    return found


def _must_last(graph: fx.Graph) -> None:
    """Refuse a graph that would not do what the forward pass does."""
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            raise RuntimeError("it makes a tensor that torch.fx would take for a constant")
        if node.target in _IN_PLACE and not node.users:
            raise RuntimeError(f"{_kind(node)} changes its input in place, and what it returns is not used")


def _random_states() -> tuple[Tensor, Any, Any]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _put_back(before: tuple[Tensor, Any, Any]) -> bool:
    """Whether random numbers have been drawn since; they are to come again."""
    now = _random_states()
    numpy_same = all(np.array_equal(one, other) for one, other in zip(before[2], now[2], strict=True))
    if torch.equal(before[0], now[0]) and before[1] == now[1] and numpy_same:
        return False
    torch.set_rng_state(before[0])
    random.setstate(before[1])
    np.random.set_state(before[2])
    return True


class _OwnForward(fx.Tracer):
    """Traces one module's forward pass and looks into none of its children."""

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """Remembers that `x += y` changes what other names of x stand for, where fx.Proxy makes `x = x + y` of it."""


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    """An operator under its own name that is not its own: torch.fx would write `x += y`, which numbers do not feel."""
    operation = getattr(operator, name)

    def function(one: Any, other: Any) -> Any:
        return operation(one, other)

    def traced(proxy: fx.Proxy, other: Any) -> fx.Proxy:
        return proxy.tracer.create_proxy("call_function", function, (proxy, other), {})

    function.__name__ = function.__qualname__ = name
    setattr(_Proxy, f"__{name}__", traced)
    return function


_ADDED_IN_PLACE, *_ = (_in_place(name) for name in ("iadd", "isub", "imul", "itruediv"))
_SUMS = (operator.add, operator.iadd, torch.add, _ADDED_IN_PLACE)


def _adds(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in _SUMS) or (
        node.op == "call_method" and node.target in SUM_METHODS
    )


def _is_activation(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in ACTIVATION_FUNCTIONS) or (
        node.op == "call_method" and node.target in ACTIVATION_METHODS
    )


def _kind(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "function")


def _named(function: Callable[[Any], Any], node: str) -> Callable[[Any], Any]:
    """The function under a name that generated code can call it by."""

    def quantized(output: Any) -> Any:
        return function(output)

    quantized.__name__ = quantized.__qualname__ = f"quantized_{node}"
    return quantized


def _with(module: Module, graph: fx.Graph, replace: Mapping[str, Callable[[Any], Any]]) -> Callable[..., Any]:
    copy = fx.Graph()
    places: dict[fx.Node, fx.Node] = {}
    changed: dict[fx.Node, fx.Node] = {}
    output = copy.graph_copy(graph, places)
    for original, node in places.items():
        if original.name in replace:
            with copy.inserting_after(node):
                new = copy.call_function(_named(replace[original.name], original.name), (node,))
            node.replace_all_uses_with(new, delete_user_cb=partial(is_not, new))
            changed[node] = new
    copy.output(fx.map_arg(output, lambda node: changed.get(node, node)))
    forward: Callable[..., Any] = type(fx.GraphModule(module, copy)).forward
    return forward
