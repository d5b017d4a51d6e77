"""Where a model's activations and its sums are: modules, and what torch.fx finds in a module's forward pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace as replaced
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn import Module

from prunekit.components.quantizer import Quantizable
from prunekit.model.bytecode import calls_activation, may_add, reached_code
from prunekit.model.dataflow import unwrapped
from prunekit.model.forward_trace import ACTIVATION_FUNCTIONS, Traced, trace_forward
from prunekit.model.names import stable_name, without_wrappers

_ACTIVATIONS = (nn.ReLU, nn.ReLU6)
_WEIGHTED = (
    nn.Linear,
    nn.Embedding,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_OPAQUE = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

INPUT = "<input>"
"""The name of what the model is given, as if it were an activation."""


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
        times = Counter(map(without_wrappers, self.quantizable))
        return {name: bare if times[bare := without_wrappers(name)] == 1 else name for name in self.quantizable}

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
        elif isinstance(module, _OPAQUE) and module.activation in ACTIVATION_FUNCTIONS:
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
    reached = list(reached_code(type(module).forward, type(module), set()))
    wrapper = type(module).__module__.startswith("torch.")
    calls, adds = any(calls_activation(*one) for one in reached), any(may_add(code) for code, _ in reached)
    if not calls and (wrapper or not (adds or any(isinstance(inner, _ACTIVATIONS) for inner in module.modules()))):
        return
    try:
        traced = trace_forward(module)
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
