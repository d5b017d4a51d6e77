"""All in a model that can be quantized: weights, activations and sums, in modules and in forward passes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn
from torch.nn import Module

from prunekit.model.bytecode import Mentions, mentions
from prunekit.model.layers import FUSED_LAYERS, QUANTIZABLE_ACTIVATIONS, WEIGHTED, operation_of
from prunekit.model.names import stable_name, without_wrappers
from prunekit.model.traced_forward import TracedForward, trace_forward
from prunekit.model.wrappers import unwrapped
from prunekit.quantization.quantizable import Quantizable

INPUT = "<input>"
"""The name of what the model is given, as if it were an activation."""


@dataclass(frozen=True)
class Catalog:
    """All in a model that can be quantized, by stable name.

    Attributes:
        quantizable: what of each module, or of each activation function or sum (`relu`, `block1.relu_1`, `block1.add`).
        modules: the modules among them.
        functions: activation function or sum -> the forward pass that it is in, and its node there.
        untraceable: modules whose forward pass mentions an activation and can't be traced, with the reason.
        untraceable_sums: those whose forward pass may add, and can't be traced, with the reason.
    """

    quantizable: dict[str, Quantizable] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    functions: dict[str, tuple[TracedForward, str]] = field(default_factory=dict)
    untraceable: dict[str, str] = field(default_factory=dict)
    untraceable_sums: dict[str, str] = field(default_factory=dict)

    @cached_property
    def unwrapped_names(self) -> dict[str, str]:
        """Name -> it without what wraps the model, by which quantizers know activations: the same wrapped or not."""
        times = Counter(map(without_wrappers, self.quantizable))
        names = {name: without_wrappers(name) for name in self.quantizable}
        return {name: short if times[short] == 1 else name for name, short in names.items()}


def catalog(model: Module) -> Catalog:
    """Look through a model, which stays as it is."""
    search = _Search()
    search.add(INPUT, unwrapped(model)[1], Quantizable("input"))
    for path, module in model.named_modules():
        search.look_at(stable_name(path), module)
    return search.finished()


def reads_weights_by_name(module: Module) -> bool:
    """Whether a module reads its weights by name when it runs forward; recurrent ones keep them in a list."""
    return not hasattr(module, "_flat_weights")


class _Search:
    """Looks through a model, module by module."""

    def __init__(self) -> None:
        self._found = Catalog()
        self._mentions: dict[type[Module], Mentions] = {}  # the blocks of a network are many modules of few classes
        # Module -> of each time that it is run, as far as known, whether an activation alone takes what it gives.
        self._before_activation: dict[Module, list[bool]] = defaultdict(list)

    def add(self, name: str, module: Module, what: Quantizable) -> None:
        self._found.quantizable[name], self._found.modules[name] = what, module

    def look_at(self, name: str, module: Module) -> None:
        """Add what can be quantized of a module, and what it says of its children."""
        operation, kind = operation_of(module), type(module).__name__
        if operation in QUANTIZABLE_ACTIVATIONS:
            self.add(name, module, Quantizable(kind, activations=True))
            return
        if operation in WEIGHTED and reads_weights_by_name(module):
            bias = getattr(module, "bias", None) is not None
            self.add(name, module, Quantizable(kind, weights=True, bias=bias))
        # A subclass with a forward pass of its own is looked into as any other module.
        if type(module).forward is nn.Sequential.forward:
            self._look_along(module._modules.values())
        elif not type(module).__module__.startswith("torch.nn.modules"):
            self._look_into(name, module)
        elif isinstance(module, FUSED_LAYERS) and operation_of(module.activation) in QUANTIZABLE_ACTIVATIONS:
            self._found.untraceable[name] = f"{kind} calls its activation inside"

    def finished(self) -> Catalog:
        """All that has been found, when all modules have been looked at."""
        found = self._found
        for name, module in found.modules.items():
            # Of a module that nobody was seen to run nothing is known.
            if name != INPUT and found.quantizable[name].weights and all(self._before_activation.get(module, [False])):
                found.quantizable[name] = replace(found.quantizable[name], before_relu=True)
        return found

    def _look_along(self, children: Iterable[Module | None]) -> None:
        """A sequence, where each child takes what the one before it gives."""
        modules = list(children)
        for module, after in zip(modules, [*modules[1:], None], strict=True):
            if module is not None:
                self._before_activation[module].append(operation_of(after) in QUANTIZABLE_ACTIVATIONS)

    def _look_into(self, path: str, module: Module) -> None:
        """The forward pass of a module that is none of torch's layers."""
        if type(module) not in self._mentions:
            self._mentions[type(module)] = mentions(type(module))
        mentioned = self._mentions[type(module)]
        if not _is_worth_tracing(module, mentioned):
            return
        try:
            # A function that runs through an attribute is mentioned nowhere: it is none, whether traced or not.
            traced = trace_forward(module, with_functions=mentioned.activations)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._found.untraceable.update({path: reason} if mentioned.activations else {})
            self._found.untraceable_sums.update({path: reason} if mentioned.sums else {})
            return
        self._add_functions(path, traced)
        for node, child in traced.children_run:
            self._before_activation[child].append(traced.before_activation[node])

    def _add_functions(self, path: str, traced: TracedForward) -> None:
        activations = {node: Quantizable(kind, activations=True) for node, kind in traced.activations.items()}
        before = traced.before_activation
        sums = {node: Quantizable(kind, adds=True, before_relu=before[node]) for node, kind in traced.sums.items()}
        for node, what in {**activations, **sums}.items():
            name = f"{path}.{node}" if path else node
            self._found.quantizable[name], self._found.functions[name] = what, (traced, node)


def _is_worth_tracing(module: Module, mentioned: Mentions) -> bool:
    """Whether a forward pass has activations, sums, or layers before activations, to be found in it.

    What torch wraps around a model adds and branches for reasons of its own, and is not run in vain.
    """
    if mentioned.activations or type(module).__module__.startswith("torch."):
        return mentioned.activations
    return mentioned.sums or any(operation_of(inner) in QUANTIZABLE_ACTIVATIONS for inner in module.modules())
