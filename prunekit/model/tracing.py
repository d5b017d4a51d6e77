"""Data flow through a model as torch.fx sees it, traced so that the model stays as it is."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import Module

from prunekit.model.layers import Function, Operation, operation_of


def every_child(module: Module) -> bool:
    """Leaves for tracing one forward pass by itself: its children are run as they are."""
    return True


def layers_of_torch(module: Module) -> bool:
    """Leaves for tracing a whole model: all that torch.nn has, but for what only holds other modules."""
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential | nn.ModuleList)


class Tracer(fx.Tracer):
    """Traces forward passes down to the leaves.

    The Python code of forward passes is run. What it does to attributes and buffers of the modules it runs through, and
    to the state of random numbers, is undone; what it prints, or appends to a list, is not.

    Args:
        is_leaf: which modules are run as they are; the others are looked into.

    Attributes:
        drew_random_numbers: a forward pass did, which its graph would take for constants.
    """

    def __init__(self, is_leaf: Callable[[Module], bool]) -> None:
        super().__init__()
        self._is_leaf = is_leaf
        self.drew_random_numbers = False

    def data_flow(self, module: Module) -> fx.Graph:
        """The data flow of a module in the mode that it is in.

        Raises:
            Exception: whatever torch.fx raises because it can't trace the module.
        """
        return self._graphs(module, module.training)[0]

    def data_flows(self, module: Module) -> tuple[fx.Graph, fx.Graph]:
        """The data flow of a module in training, and in evaluation.

        Raises:
            Exception: whatever torch.fx raises because it can't trace the module.
        """
        training, evaluation = self._graphs(module, True, False)
        return training, evaluation

    def _graphs(self, module: Module, *modes: bool) -> list[fx.Graph]:
        run = [inner for inner in module.modules() if inner is module or not self._is_leaf(inner)]
        before, graphs = _random_states(), []
        try:
            for training in modes:
                with _unchanged(run):
                    # Its own flag alone: `train()` would set those of the leaves too, which nobody puts back.
                    vars(module)["training"] = training
                    graphs.append(self.trace(module))
        finally:
            self.drew_random_numbers = _put_back(before)
        return graphs

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def operation_at(node: fx.Node, root: Module) -> Operation | None:
    """What a node does in the data flow of a module; None for what is not in the vocabulary of layers."""
    return operation_of(_done_by(node, root))


def is_in_place(node: fx.Node, root: Module) -> bool:
    """Whether a node is spelled as what writes its result into its first argument."""
    what = _done_by(node, root)
    operation = operation_of(what)
    return operation is not None and what in operation.in_place


def name_of(node: fx.Node) -> str:
    """The name of a node's function or method."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "function")


# The model stays as it is


@contextmanager
def _unchanged(modules: Iterable[Module]) -> Iterator[None]:
    """Attributes of modules are afterwards what they were; what is done to their buffers is done to copies."""
    before = [(module, dict(vars(module))) for module in modules]
    for module, attributes in before:
        # The forward pass gets copies of the tables: those in `before` stay as they are, whatever it registers.
        for table in ("_parameters", "_modules", "_buffers"):
            if isinstance(attributes.get(table), dict):  # a scripted module has something else
                vars(module)[table] = attributes[table].copy()
        buffers = vars(module).get("_buffers", {})
        buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for module, attributes in before:
            # Behind `__setattr__`, since a module sorts what it is given into its tables.
            vars(module).clear()
            vars(module).update(attributes)


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


# Operators that work in place


class _Proxy(fx.Proxy):
    """Remembers that `x += y` changes what other names of x stand for, where fx.Proxy makes `x = x + y` of it."""


_OPERATORS: dict[Any, Function] = {}
"""A function that stands in a graph for an operator -> that operator."""


def _keep_in_place(name: str) -> None:
    """Let a graph hold an operator as a function of the same name that is not the operator.

    Of `operator.iadd` itself torch.fx would write `x += y; iadd = x` into the code that it makes of the graph: where x
    is a number, whoever uses the old x would be given the new one.
    """
    operation = getattr(operator, name)

    def function(one: Any, other: Any) -> Any:
        return operation(one, other)

    def traced(proxy: fx.Proxy, other: Any) -> fx.Proxy:
        return proxy.tracer.create_proxy("call_function", function, (proxy, other), {})

    function.__name__ = function.__qualname__ = name
    setattr(_Proxy, f"__{name}__", traced)
    _OPERATORS[function] = operation


for _name in ("iadd", "isub", "imul", "itruediv"):
    _keep_in_place(_name)


def _done_by(node: fx.Node, root: Module) -> object:
    """The module, the function or the name of the method that a node stands for."""
    if node.op == "call_module":
        return root.get_submodule(str(node.target))
    if node.op == "call_function":
        return _OPERATORS.get(node.target, node.target)
    return node.target if node.op == "call_method" else None
