"""A module's own forward pass, its children as they are: which activations and sums it has, and how to change them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from operator import is_not
from typing import Any

from torch import fx
from torch.nn import Module

from prunekit.model.layers import QUANTIZABLE_ACTIVATIONS, SUM
from prunekit.model.tracing import Tracer, every_child, is_in_place, name_of, operation_at

Replacements = Mapping[str, Callable[[Any], Any]]
"""Node -> the function that its value goes through before anything else sees it."""


@dataclass(frozen=True)
class TracedForward:
    """A module's own forward pass, its children as they are, as torch.fx sees it in training and in evaluation.

    Attributes:
        module: whose forward pass it is.
        training, evaluation: its data flow.
        activations: the activation functions in it that can be quantized: node -> kind.
    """

    module: Module
    training: fx.Graph
    evaluation: fx.Graph
    activations: Mapping[str, str]

    @cached_property
    def sums(self) -> dict[str, str]:
        """Its sums of two tensors, if in training as in evaluation: node -> kind."""
        others = {node.name for node in _sums(self.evaluation, self.module)}
        return {node.name: name_of(node) for node in _sums(self.training, self.module) if node.name in others}

    @cached_property
    def before_activation(self) -> dict[str, bool]:
        """Node -> whether a quantizable activation, function or module, is all that takes its value in evaluation."""
        return {
            node.name: len(node.users) == 1 and self._is_activation(next(iter(node.users)))
            for node in self.evaluation.nodes
        }

    @property
    def children_run(self) -> list[tuple[str, Module]]:
        """What runs its children in evaluation: node and child, in order; a child may run more than once."""
        nodes = [node for node in self.evaluation.nodes if node.op == "call_module"]
        return [(node.name, self.module.get_submodule(str(node.target))) for node in nodes]

    def forward(self, replace: Replacements) -> Callable[..., Any]:
        """A forward function in which the values of these nodes are replaced."""
        training = _replaced(self.module, self.training, replace)
        evaluation = _replaced(self.module, self.evaluation, replace)

        def forward(module: Module, *args: Any, **kwargs: Any) -> Any:
            return (training if module.training else evaluation)(module, *args, **kwargs)

        return forward

    def _is_activation(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            return node.name in self.activations
        return operation_at(node, self.module) in QUANTIZABLE_ACTIVATIONS


def trace_forward(module: Module, with_functions: bool = True) -> TracedForward:
    """Trace a module, which stays as it is.

    Args:
        module: whose forward pass to trace.
        with_functions: its activation functions count, and not only the activations among its children.

    Raises:
        Exception: whatever torch.fx raised, or why a trace would not do what the forward pass does.
    """
    tracer = Tracer(every_child)
    graphs = tracer.data_flows(module)
    if tracer.drew_random_numbers:
        raise RuntimeError("it draws random numbers that torch.fx would take for constants")
    training, evaluation = (_activations(graph, module) for graph in graphs)
    for graph, activations in zip(graphs, (training, evaluation), strict=True):
        _must_do_the_same(graph, activations, module)
    # Values are replaced by the name of their node, the same in both graphs.
    if {node.name for node in training} != {node.name for node in evaluation}:
        raise RuntimeError("it calls other activations in training than in evaluation")
    kinds = {node.name: name_of(node) for node in training} if with_functions else {}
    return TracedForward(module, *graphs, kinds)


def _must_do_the_same(graph: fx.Graph, activations: Iterable[fx.Node], module: Module) -> None:
    """Refuse a graph that would not do what the forward pass does once values are replaced in it."""
    if any(node.op == "get_attr" and str(node.target).startswith("_tensor_constant") for node in graph.nodes):
        raise RuntimeError("it makes a tensor that torch.fx would take for a constant")
    for node in activations:
        # What comes behind sees the input, which is changed, and not the node, whose value would be replaced.
        if is_in_place(node, module) and not node.users:
            raise RuntimeError(f"{name_of(node)} changes its input in place, and what it returns is not used")


def _activations(graph: fx.Graph, module: Module) -> list[fx.Node]:
    """Functions and methods; modules that are activations are found by themselves, whoever runs them."""
    nodes = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    return [node for node in nodes if operation_at(node, module) in QUANTIZABLE_ACTIVATIONS]


def _sums(graph: fx.Graph, module: Module) -> list[fx.Node]:
    """What adds two values of which one at least comes from the data, and is used."""
    data: set[fx.Node] = set()
    found = []
    for node in graph.nodes:
        if node.op == "placeholder" or data & set(node.all_input_nodes):
            data.add(node)
            terms = [*node.args, *(node.kwargs.get(key) for key in ("input", "other"))]
            two = sum(isinstance(term, fx.Node) for term in terms) > 1
            if two and node.users and operation_at(node, module) is SUM:
                found.append(node)
    return found


def _replaced(module: Module, graph: fx.Graph, replace: Replacements) -> Callable[..., Any]:
    """The forward function of a graph in which the values of some nodes go through a function first."""
    # A copy, because the graph itself serves again when other values are to be replaced.
    copy = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    changed: dict[fx.Node, fx.Node] = {}
    output = copy.graph_copy(graph, copied)
    for original, node in copied.items():
        if original.name in replace:
            with copy.inserting_after(node):
                new = copy.call_function(_under_a_name(replace[original.name], original.name), (node,))
            node.replace_all_uses_with(new, delete_user_cb=partial(is_not, new))  # all but its own
            changed[node] = new
    # `graph_copy` leaves out the output node and returns what it held, which no replacement of uses has reached.
    copy.output(fx.map_arg(output, lambda node: changed.get(node, node)))
    # Only the generated function is wanted: called with the module itself, it reads its children as they are then.
    forward: Callable[..., Any] = type(fx.GraphModule(module, copy)).forward
    return forward


def _under_a_name(function: Callable[[Any], Any], node: str) -> Callable[[Any], Any]:
    """The function under a name that generated code can call it by, whatever kind of callable it is."""

    def quantized(output: Any) -> Any:
        return function(output)

    quantized.__name__ = quantized.__qualname__ = f"quantized_{node}"
    return quantized
