"""What a model's data flow says about its modules, as far as torch.fx can trace it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.nn import Module

from prunekit.model.layers import ACTIVATIONS, BATCH_NORM, CONVOLUTION, LINEAR
from prunekit.model.tracing import Tracer, layers_of_torch, operation_at
from prunekit.model.wrappers import unwrapped


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
    prefix, inner = unwrapped(model)
    pairs = {}
    for node in Tracer(layers_of_torch).data_flow(inner).nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        if operation_at(before, inner) is CONVOLUTION and operation_at(node, inner) is BATCH_NORM:
            pairs[f"{prefix}{before.target}"] = f"{prefix}{node.target}"
    return pairs


def following_activations(model: Module) -> dict[str, Activation]:
    """Convolution or linear layer -> the activation that alone takes its output, by module name.

    Between them may lie what leaves channels where they are: normalization, dropout, pooling. An activation may be a
    module, a function or a method. Where a layer is run more than once, each time must lead to the same.

    Raises:
        Exception: whatever torch.fx raised because it can't trace the model.
    """
    prefix, inner = unwrapped(model)
    search = _Search(prefix, inner, Tracer(layers_of_torch).data_flow(inner))
    found: dict[str, Activation | None] = {}
    for node in search.graph.nodes:
        if node.op == "call_module" and operation_at(node, inner) in (CONVOLUTION, LINEAR):
            name, activation = f"{prefix}{node.target}", search.activation_behind(node)
            same = name not in found or _are_the_same(found[name], activation)
            found[name] = activation if same else None
    return {name: activation for name, activation in found.items() if activation is not None}


class _Search:
    """Finds activations in the data flow of a model.

    Args:
        prefix: what wrappers put before the names of the model's modules.
        model: without its wrappers.
        graph: its data flow.
    """

    def __init__(self, prefix: str, model: Module, graph: fx.Graph) -> None:
        self.graph = graph
        self._prefix, self._model = prefix, model
        self._times_run = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")

    def activation_behind(self, node: fx.Node) -> Activation | None:
        """Follow the only user of each output until an activation is met."""
        module = str(node.target)
        functions: list[Callable[[Tensor], Tensor]] = []
        while len(node.users) == 1:
            before, node = node, next(iter(node.users))
            operation = operation_at(node, self._model)
            if operation is None or not operation.keeps_channels or not _takes_only(node, before):
                return None
            if node.op == "call_module" and self._times_run[str(node.target)] == 1:
                module, functions = str(node.target), []  # a hook there sees this very output
            # A hook can't tell the runs of a shared module apart: it is run again, on what the module before it gives.
            elif not operation.repeatable:
                return None
            else:
                functions.append(self._function(node))
            if operation in ACTIVATIONS:
                return Activation(f"{self._prefix}{module}", tuple(functions))
        return None

    def _function(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        """What a node does to its first argument; its others are constants."""
        target = self._model.get_submodule(str(node.target)).forward if node.op == "call_module" else node.target
        return _WithArguments(target, tuple(node.args[1:]), dict(node.kwargs))


@dataclass(frozen=True)
class _WithArguments:
    """A function or a method of tensors with all its arguments but the first; unlike a closure it can be pickled."""

    function: Callable[..., Any] | str
    others: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self, output: Tensor) -> Tensor:
        function = getattr(Tensor, self.function) if isinstance(self.function, str) else self.function
        result: Tensor = function(output, *self.others, **self.keywords)
        return result


def _takes_only(node: fx.Node, before: fx.Node) -> bool:
    """Whether a node takes what another one gives, as its first argument, and nothing else but constants."""
    return node.all_input_nodes == [before] and bool(node.args) and node.args[0] is before


def _are_the_same(one: Activation | None, other: Activation | None) -> bool:
    """Whether two activations are seen in one place; functions of equal number there are those of one forward pass."""
    if one is None or other is None:
        return one is other
    return (one.module, len(one.functions)) == (other.module, len(other.functions))
