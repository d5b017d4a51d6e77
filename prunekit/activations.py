"""Where a model's activations and its sums are: modules, and what torch.fx finds in a module's forward pass."""

from __future__ import annotations

import dis
import inspect
import operator
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace as replaced
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
_SUM_METHODS = ("add", "add_")
_OPAQUE = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

INPUT = "<input>"
"""The name of what the model is given, as if it were an activation."""


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


@dataclass(frozen=True)
class Catalog:
    """All in a model that can be quantized, by stable name.

    Attributes:
        quantizable: what of each module, or of each activation function or sum (`relu`, `block1.relu_1`, `block1.add`).
        modules: the modules among them.
        functions: activation function or sum -> the module whose forward pass calls it, and its node there.
        untraced: modules whose forward pass mentions an activation and can't be traced, with the reason.
        untraced_sums: those whose forward pass may add, and can't be traced, with the reason.
    """

    quantizable: dict[str, Quantizable] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    functions: dict[str, tuple[Traced, str]] = field(default_factory=dict)
    untraced: dict[str, str] = field(default_factory=dict)
    untraced_sums: dict[str, str] = field(default_factory=dict)

    @cached_property
    def bare(self) -> dict[str, str]:
        """Name -> it without what wraps the model, by which quantizers know activations: the same wrapped or not."""
        times = Counter(map(without_module, self.quantizable))
        return {name: bare if times[bare := without_module(name)] == 1 else name for name in self.quantizable}

    def forwards(self, replace: Mapping[str, Callable[[Any], Any]]) -> dict[Module, Callable[..., Any]]:
        """Module -> a forward pass in which what these activations, by bare name, give goes through `replace` first."""
        replace = {name: replace[bare] for name, bare in self.bare.items() if bare in replace}
        inside: dict[int, tuple[Traced, dict[str, Callable[[Any], Any]]]] = {}
        for name in replace:
            if name in self.functions:
                traced, node = self.functions[name]
                function = _of_floats(replace[name]) if self.quantizable[name].adds else replace[name]
                inside.setdefault(id(traced), (traced, {}))[1][node] = function
        forwards = {traced.module: traced.forward(nodes) for traced, nodes in inside.values()}
        for name in replace:
            if name in self.modules and name != INPUT:
                module = self.modules[name]
                forwards[module] = _through(forwards.get(module, type(module).forward), replace[name])
        if INPUT in replace:
            model = self.modules[INPUT]
            forwards[model] = _given(forwards.get(model, type(model).forward), replace[INPUT])
        return forwards


def catalog(model: Module) -> Catalog:
    """Look through a model, which stays as it is."""
    found = Catalog()
    followed: dict[Module, list[bool]] = defaultdict(list)
    _add(found, INPUT, unwrapped(model)[1], Quantizable("input"))
    for path, module in model.named_modules():
        name = stable_name(path)
        if isinstance(module, _ACTIVATIONS):
            _add(found, name, module, Quantizable(type(module).__name__, activations=True))
            continue
        if isinstance(module, _WEIGHTED) and readable(module):
            bias = getattr(module, "bias", None) is not None
            _add(found, name, module, Quantizable(type(module).__name__, weights=True, bias=bias))
        if type(module).forward is nn.Sequential.forward:
            _follow(module, followed)
        elif not type(module).__module__.startswith("torch.nn.modules"):
            _look_into(found, name, module, followed)
        elif isinstance(module, _OPAQUE) and module.activation in _FUNCTIONS:
            found.untraced[name] = f"{type(module).__name__} calls its activation inside"
    for name, module in found.modules.items():
        if name != INPUT and found.quantizable[name].weights and all(followed.get(module, [False])):
            found.quantizable[name] = replaced(found.quantizable[name], before_relu=True)
    return found


def readable(module: Module) -> bool:
    """Whether a module reads its weights by name when it runs forward; recurrent ones keep them in a list."""
    return not hasattr(module, "_flat_weights")


def _through(forward: Callable[..., Any], function: Callable[[Any], Any]) -> Callable[..., Any]:
    def quantized(module: Module, *args: Any, **kwargs: Any) -> Any:
        return function(forward(module, *args, **kwargs))

    return quantized


def _of_floats(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function for tensors of floating numbers; all else stays as it is."""

    def change(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return change


def _given(forward: Callable[..., Any], function: Callable[[Any], Any]) -> Callable[..., Any]:
    """A forward pass whose inputs, those of floating numbers, go through `function` first."""
    change = _of_floats(function)

    def quantized(module: Module, *args: Any, **kwargs: Any) -> Any:
        return forward(module, *map(change, args), **{key: change(value) for key, value in kwargs.items()})

    return quantized


def _add(found: Catalog, name: str, module: Module, what: Quantizable) -> None:
    found.quantizable[name], found.modules[name] = what, module


def _look_into(found: Catalog, path: str, module: Module, followed: Mapping[Module, list[bool]]) -> None:
    """Activation functions and sums in a module's own forward pass, and the layers there that a ReLU follows."""
    reached = list(_reached(type(module).forward, type(module), set()))
    wrapper = type(module).__module__.startswith("torch.")
    calls, adds = any(_calls_activation(*one) for one in reached), any(_may_add(code) for code, _ in reached)
    if not calls and (wrapper or not (adds or any(isinstance(inner, _ACTIVATIONS) for inner in module.modules()))):
        return
    try:
        traced = _trace(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        found.untraced.update({path: reason} if calls else {})
        found.untraced_sums.update({path: reason} if adds else {})
        return
    names = traced.names if calls else {}
    taken = _alone_with(names, traced)
    for node, kind in names.items():
        _add_function(found, path, traced, node, Quantizable(kind, activations=True))
    for node, kind in traced.sums.items():
        _add_function(found, path, traced, node, Quantizable(kind, adds=True, before_relu=taken[node]))
    for one in traced.graphs[False].nodes:
        if one.op == "call_module":
            followed[module.get_submodule(str(one.target))].append(taken[one.name])


def _add_function(found: Catalog, path: str, traced: Traced, node: str, what: Quantizable) -> None:
    name = f"{path}.{node}" if path else node
    found.quantizable[name], found.functions[name] = what, (traced, node)


def _follow(sequence: Module, followed: Mapping[Module, list[bool]]) -> None:
    """The layers in a sequence that a ReLU follows."""
    modules = list(sequence._modules.values())
    for module, after in zip(modules, [*modules[1:], None], strict=True):
        if module is not None:
            followed[module].append(isinstance(after, _ACTIVATIONS))


def _alone_with(names: Mapping[str, str], traced: Traced) -> dict[str, bool]:
    """Node -> whether a ReLU, one of these functions or a module, is all that takes what it gives in evaluation."""
    taken = {}
    for node in traced.graphs[False].nodes:
        user = next(iter(node.users)) if len(node.users) == 1 else None
        module = traced.module.get_submodule(str(user.target)) if user and user.op == "call_module" else None
        taken[node.name] = isinstance(module, _ACTIVATIONS) or (user is not None and user.name in names)
    return taken


def _reached(function: Any, cls: type, seen: set[int]) -> Iterator[tuple[CodeType, list[Any]]]:
    """The code of a function, and of the functions and methods that it names, each with what it may call.

    torch's own functions are named and not looked into.
    """
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType) or id(function) in seen:
        return
    seen.add(id(function))
    for code in _codes(function.__code__):
        called = [function.__globals__.get(name, getattr(cls, name, None)) for name in code.co_names]
        yield code, called
        for one in called:
            if isinstance(one, FunctionType) and not one.__module__.startswith("torch."):
                yield from _reached(one, cls, seen)


def _calls_activation(code: CodeType, called: list[Any]) -> bool:
    """Whether code may call an activation function.

    Modules that happen to be called `self.relu` do not count: they are found by themselves.
    """
    return _names_activation(code) or any(one is known for one in called for known in _FUNCTIONS)


def _may_add(code: CodeType) -> bool:
    """Whether code adds something to something, be it tensors or not."""
    found = [
        (instruction.opname, instruction.argrepr, instruction.argval) for instruction in dis.get_instructions(code)
    ]
    return any(
        (name == "BINARY_OP" and sign in ("+", "+=")) or (isinstance(value, str) and value in _SUM_METHODS)
        for name, sign, value in found
    )


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
        node.op == "call_method" and node.target in _SUM_METHODS
    )


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
