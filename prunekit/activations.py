"""Where a model's activations are: modules, and functions that torch.fx finds in a module's forward pass."""

from __future__ import annotations

import dis
import inspect
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import is_not
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import Module, functional

from prunekit.components import Quantizable
from prunekit.graph import unwrapped
from prunekit.parameters import stable_name
from prunekit.selectors import without_module

_ACTIVATIONS = (nn.ReLU, nn.ReLU6)
_WEIGHTED = (
    nn.Linear,
    nn.Embedding,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_FUNCTIONS = (torch.relu, torch.relu_, functional.relu, functional.relu_, functional.relu6)
_METHODS = ("relu", "relu_")
_IN_PLACE = (torch.relu_, functional.relu_, "relu_")
_WORDS = frozenset((*_METHODS, "relu6"))
_OPAQUE = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

INPUT = "<input>"
"""The name of what the model is given, as if it were an activation."""


@dataclass(frozen=True)
class Traced:
    """A module's own forward pass, its children as they are, as torch.fx sees it in training and in evaluation."""

    module: Module
    graphs: Mapping[bool, fx.Graph]
    names: Mapping[str, str]

    def forward(self, replace: Mapping[str, Callable[[Any], Any]]) -> Callable[..., Any]:
        """A forward function in which what some activations give, by node name, goes through `replace` first."""
        by_mode = {mode: _with(self.module, graph, replace) for mode, graph in self.graphs.items()}

        def forward(module: Module, *args: Any, **kwargs: Any) -> Any:
            return by_mode[module.training](module, *args, **kwargs)

        return forward


@dataclass(frozen=True)
class Catalog:
    """All in a model that can be quantized, by stable name.

    Attributes:
        quantizable: what of each module, or of each activation function (`relu`, `block1.relu_1`).
        modules: the modules among them.
        functions: activation function -> the module whose forward pass calls it, and its node there.
        untraced: modules whose forward pass mentions an activation and can't be traced, with the reason.
    """

    quantizable: dict[str, Quantizable] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    functions: dict[str, tuple[Traced, str]] = field(default_factory=dict)
    untraced: dict[str, str] = field(default_factory=dict)

    @cached_property
    def bare(self) -> dict[str, str]:
        """Name -> it without what wraps the model, by which quantizers know activations: the same wrapped or not."""
        times = Counter(map(without_module, self.quantizable))
        return {name: bare if times[bare := without_module(name)] == 1 else name for name in self.quantizable}

    def forwards(self, replace: Mapping[str, Callable[[Any], Any]]) -> dict[Module, Callable[..., Any]]:
        """Module -> a forward pass in which what these activations, by bare name, give goes through `replace` first."""
        replace = {name: replace[bare] for name, bare in self.bare.items() if bare in replace}
        own = {self.modules[name]: replace[name] for name in replace if name in self.modules and name != INPUT}
        forwards = {module: _through(module, function) for module, function in own.items()}
        inside: dict[int, tuple[Traced, dict[str, Callable[[Any], Any]]]] = {}
        for name in replace:
            if name in self.functions:
                traced, node = self.functions[name]
                inside.setdefault(id(traced), (traced, {}))[1][node] = replace[name]
        forwards |= {traced.module: traced.forward(nodes) for traced, nodes in inside.values()}
        if INPUT in replace:
            model = self.modules[INPUT]
            forwards[model] = _given(forwards.get(model, type(model).forward), replace[INPUT])
        return forwards


def catalog(model: Module) -> Catalog:
    """Look through a model, which stays as it is."""
    found = Catalog()
    _add(found, INPUT, unwrapped(model)[1], Quantizable("input"))
    for path, module in model.named_modules():
        name = stable_name(path)
        if isinstance(module, _ACTIVATIONS):
            _add(found, name, module, Quantizable(type(module).__name__, activations=True))
            continue
        if isinstance(module, _WEIGHTED) and readable(module):
            bias = getattr(module, "bias", None) is not None
            _add(found, name, module, Quantizable(type(module).__name__, weights=True, bias=bias))
        if not type(module).__module__.startswith("torch.nn.modules"):
            _look_into(found, name, module)
        elif isinstance(module, _OPAQUE) and module.activation in _FUNCTIONS:
            found.untraced[name] = f"{type(module).__name__} calls its activation inside"
    return found


def readable(module: Module) -> bool:
    """Whether a module reads its weights by name when it runs forward; recurrent ones keep them in a list."""
    return not hasattr(module, "_flat_weights")


def _through(module: Module, function: Callable[[Any], Any]) -> Callable[..., Any]:
    forward = type(module).forward

    def quantized(module: Module, *args: Any, **kwargs: Any) -> Any:
        return function(forward(module, *args, **kwargs))

    return quantized


def _given(forward: Callable[..., Any], function: Callable[[Any], Any]) -> Callable[..., Any]:
    """A forward pass whose inputs, those of floating numbers, go through `function` first."""

    def change(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    def quantized(module: Module, *args: Any, **kwargs: Any) -> Any:
        return forward(module, *map(change, args), **{key: change(value) for key, value in kwargs.items()})

    return quantized


def _add(found: Catalog, name: str, module: Module, what: Quantizable) -> None:
    found.quantizable[name], found.modules[name] = what, module


def _look_into(found: Catalog, path: str, module: Module) -> None:
    """Activation functions in a module's own forward pass."""
    if not _calls_activations(type(module).forward, type(module), set()):
        return
    try:
        traced = _trace(module)
    except Exception as error:
        found.untraced[path] = f"{type(error).__name__}: {error}".splitlines()[0]
        return
    for node, kind in traced.names.items():
        name = f"{path}.{node}" if path else node
        found.quantizable[name] = Quantizable(kind, activations=True)
        found.functions[name] = (traced, node)


def _calls_activations(function: Any, cls: type, seen: set[int]) -> bool:
    """Whether a function, or one of the functions and methods that it names, may call an activation function.

    Modules that happen to be called `self.relu` do not count: they are found by themselves.
    """
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType) or id(function) in seen:
        return False
    seen.add(id(function))
    for code in _codes(function.__code__):
        if _names_activation(code):
            return True
        for name in code.co_names:
            called = function.__globals__.get(name, getattr(cls, name, None))
            own = isinstance(called, FunctionType) and not called.__module__.startswith("torch.")
            if any(called is known for known in _FUNCTIONS) or (own and _calls_activations(called, cls, seen)):
                return True
    return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Code, and the code of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names_activation(code: CodeType) -> bool:
    """Whether code asks something else than `self` for a function called `relu`."""
    previous = None
    for instruction in dis.get_instructions(code):
        if isinstance(instruction.argval, str) and instruction.argval in _WORDS:
            of_self = previous is not None and "FAST" in previous.opname and "self" in str(previous.argval)
            if not of_self:
                return True
        previous = instruction
    return False


def _trace(module: Module) -> Traced:
    graphs, mode, attributes, before = {}, module.training, set(vars(module)), _random_states()
    try:
        for training in (True, False):
            module.training = training
            graphs[training] = _OwnForward().trace(module)
    finally:
        module.training = mode
        for name in set(vars(module)) - attributes:  # constants of torch.fx
            del vars(module)[name]
        drawn = _put_back(before)
    if drawn:
        raise RuntimeError("it draws random numbers that torch.fx would take for constants")
    for graph in graphs.values():
        _must_last(graph)
    names = {node.name: _kind(node) for node in graphs[True].nodes if _is_activation(node)}
    others = {node.name for node in graphs[False].nodes if _is_activation(node)}
    if set(names) != others:
        raise RuntimeError("it calls other activations in training than in evaluation")
    return Traced(module, graphs, names)


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


def _is_activation(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in _FUNCTIONS) or (
        node.op == "call_method" and node.target in _METHODS
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
