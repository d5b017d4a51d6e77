"""What a model's data flow says about its modules, as far as torch.fx can trace it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (*_CONVOLUTIONS, nn.Linear)

# By name, of modules in lower case and without underscores: `nn.LeakyReLU`, `F.leaky_relu` and `tensor.relu_` alike.
_ACTIVATION_NAMES = """
celu elu gelu hardshrink hardsigmoid hardswish hardtanh leakyrelu logsigmoid mish prelu relu relu6 rrelu selu sigmoid
silu softplus softshrink softsign tanh tanhshrink threshold
"""
_BETWEEN_NAMES = """
batchnorm1d batchnorm2d batchnorm3d syncbatchnorm instancenorm1d instancenorm2d instancenorm3d groupnorm identity
dropout dropout1d dropout2d dropout3d
"""
_ACTIVATIONS, _BETWEEN = frozenset(_ACTIVATION_NAMES.split()), frozenset(_BETWEEN_NAMES.split())
_POOLS = frozenset(f"{kind}pool{d}d" for kind in ("max", "avg", "adaptivemax", "adaptiveavg") for d in (1, 2, 3))
_ONCE = _BETWEEN | {"rrelu"}
"""What can't be applied again to see what it gives: it would count twice in its statistics, or draw twice."""


@dataclass(frozen=True)
class Activation:
    """Where the activation of a layer can be seen.

    Attributes:
        module: the name of the last module on the way to it, often the activation itself.
        functions: what the model's forward does to that module's output before it is the activation.
    """

    module: str
    functions: tuple[Callable[[Tensor], Tensor], ...] = ()

    def of(self, output: Tensor) -> Tensor:
        """The activation, from the output of the module; that one stays as it is."""
        if self.functions:
            output = output.clone()  # a function may work in place
        for function in self.functions:
            output = function(output)
        return output


def following_batchnorms(model: Module) -> dict[str, str]:
    """Convolution -> the batch normalization that alone takes its output, by module name.

    Raises:
        Exception: whatever torch.fx raised because it can't trace the model.
    """
    modules = dict(model.named_modules())
    pairs = {}
    for node in _trace(model):
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        before, after = modules[str(source.target)], modules[str(node.target)]
        if isinstance(before, _CONVOLUTIONS) and isinstance(after, _BATCH_NORMS):
            pairs[str(source.target)] = str(node.target)
    return pairs


def following_activations(model: Module) -> dict[str, Activation]:
    """Convolution or linear layer -> the activation that alone takes its output, by module name.

    Between them may lie what leaves channels where they are: normalization, dropout, pooling. An activation may be a
    module, a function or a method. Where a layer is called more than once, each call must lead to the same.

    Raises:
        Exception: whatever torch.fx raised because it can't trace the model.
    """
    modules, nodes = dict(model.named_modules()), list(_trace(model))
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    found: dict[str, Activation | None] = {}
    for node in nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], _LAYERS):
            name, activation = str(node.target), _activation_behind(node, modules, calls)
            same = name not in found or _place(found[name]) == _place(activation)
            found[name] = activation if same else None
    return {name: activation for name, activation in found.items() if activation is not None}


def folded_weight(weight: Tensor, batchnorm: Any) -> Tensor:
    """A convolution's weight [out, in, …] times gamma / sqrt(running_var + eps) of its batch normalization.

    Ioffe & Szegedy 2015, arXiv 1502.03167: at inference a batch normalization is that factor on each filter.
    """
    factor = torch.rsqrt(batchnorm.running_var + batchnorm.eps)
    if batchnorm.weight is not None:
        factor = factor * batchnorm.weight
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))


def unwrapped(model: Module) -> tuple[str, Module]:
    """The model within what torch.compile and data parallelism wrap around it, and the prefix of its module names."""
    prefix = ""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), Module):
            prefix, model = f"{prefix}_orig_mod.", model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.DataParallel | DistributedDataParallel):
            prefix, model = f"{prefix}module.", model.module
        else:
            return prefix, model


def _activation_behind(node: fx.Node, modules: dict[str, Module], calls: Counter[str]) -> Activation | None:
    """Follow the only user of each output until an activation is met."""
    where = str(node.target)
    functions: list[Callable[[Tensor], Tensor]] = []
    while len(node.users) == 1:
        before, node = node, next(iter(node.users))
        name = _name(node, modules)
        if node.all_input_nodes != [before] or not node.args or node.args[0] is not before:
            return None
        if name not in _ACTIVATIONS | _POOLS | _BETWEEN:
            return None
        if node.op == "call_module" and calls[str(node.target)] == 1:
            where, functions = str(node.target), []
        elif name in _ONCE:
            return None
        else:
            functions.append(_function(node, modules))
        if name in _ACTIVATIONS:
            return Activation(where, tuple(functions))
    return None


def _name(node: fx.Node, modules: dict[str, Module]) -> str:
    """What a node does, in lower case and without underscores."""
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__.lower()
    if node.op in ("call_function", "call_method"):
        return str(getattr(node.target, "__name__", node.target)).replace("_", "").lower()
    return ""


def _function(node: fx.Node, modules: dict[str, Module]) -> Callable[[Tensor], Tensor]:
    """What a node does to its first argument; its others are constants."""
    target = modules[str(node.target)].forward if node.op == "call_module" else node.target
    return _Applied(target, tuple(node.args[1:]), dict(node.kwargs))


@dataclass(frozen=True)
class _Applied:
    """A function or a method of tensors with all its arguments but the first; unlike a closure it can be pickled."""

    function: Callable[..., Any] | str
    rest: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self, output: Tensor) -> Tensor:
        function = getattr(Tensor, self.function) if isinstance(self.function, str) else self.function
        result: Tensor = function(output, *self.rest, **self.keywords)
        return result


def _place(activation: Activation | None) -> tuple[str, int] | None:
    return None if activation is None else (activation.module, len(activation.functions))


def _trace(model: Module) -> Iterator[fx.Node]:
    """The nodes of a model's data flow; module names as the model, wrapped as it is, has them."""
    prefix, inner = unwrapped(model)
    with torch.random.fork_rng(devices=[]):
        graph = _Tracer().trace(inner)
    for node in graph.nodes:
        if node.op == "call_module":
            node.target = prefix + str(node.target)
        yield node


class _Tracer(fx.Tracer):
    """Looks into everything but torch's own layers."""

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        return m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential | nn.ModuleList)
