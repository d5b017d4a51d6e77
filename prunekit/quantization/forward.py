"""Quantization in the forward pass: reading a parameter gives other values, and an activation passes others on.

Parameters keep their names and their float values, modules their places.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from prunekit.quantization.catalog import Catalog
from prunekit.quantization.forward_passes import forward_passes
from prunekit.quantization.sparse_gradients import WithSparseGradients
from prunekit.quantization.values import QuantizedActivation, QuantizedWeight

Read = Callable[[Tensor], Tensor]

_WEIGHTS = "_prunekit_quantized_weights"
_ORIGINAL = "_prunekit_original_class"
_MEANING_THE_PARAMETER = ("register_parametrization", "remove_parametrizations", "reset_parameters")
"""The functions that mean the parameter itself: `torch.nn.utils.parametrize` takes it out of a module to put it into
another, and a layer that is initialized anew writes to it."""


class QuantizedForward:
    """The modules of a model whose weights read as quantized now, and those whose activations pass on other values.

    A module's class is replaced by a subclass with a property for each quantized weight (as
    `torch.nn.utils.parametrize` does it), while the parameter stays where it is: `named_parameters`, `state_dict`, the
    optimizer and the masks see the float weight under its own name, whoever reads `module.weight` the quantized one.
    The subclass of an activation, or of a module that calls activation functions, has a forward pass of its own.

    Attributes:
        weights: what is read in place of each quantized parameter.
        activations: what is passed on in place of each quantized activation, by name.
        catalog: where the activations are, if there are any.
    """

    def __init__(self, model: Module) -> None:
        self._model = model
        self.weights: Mapping[Parameter, QuantizedWeight] = {}
        self.activations: Mapping[str, QuantizedActivation] = {}
        self.catalog: Catalog | None = None
        self._wanted: tuple[Mapping[Parameter, QuantizedWeight], Mapping[str, QuantizedActivation], Catalog | None]
        self._wanted, self._suspended = ({}, {}, None), 0
        self._changed: list[tuple[Module, type[Module], Mapping[str, Read]]] = []

    def activate(
        self,
        weights: Mapping[Parameter, QuantizedWeight],
        activations: Mapping[str, QuantizedActivation],
        catalog: Catalog | None,
    ) -> None:
        """From now on these parameters and activations are quantized, all others are as they are.

        `catalog` says where the activations are; it is needed where there are any.
        """
        self._wanted = weights, activations, catalog
        if self._suspended:
            return
        # The values compare by identity. New classes for the same ones would make torch.compile compile anew.
        if (weights, activations) == (self.weights, self.activations):
            return
        self._take_back()
        self.weights, self.activations, self.catalog = weights, activations, catalog
        forwards = {} if catalog is None else forward_passes(catalog, activations)
        for module in self._model.modules() if weights or activations else ():
            own: dict[str, Read] = {
                name: weights[p] for name, p in module._parameters.items() if p is not None and p in weights
            }
            if getattr(module, "sparse", False) is True:
                own = {name: WithSparseGradients(weight) for name, weight in own.items()}
            forward = forwards.get(module)
            if own or forward is not None:
                self._change(module, own, forward)

    def read(self, parameter: Parameter) -> Tensor:
        """A parameter as the forward pass sees it, without its mask."""
        quantized = self.weights.get(parameter)
        if quantized is None:
            return parameter.detach()
        with torch.no_grad():
            return quantized(parameter).detach()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """All weights and activations are as they are, until the end of the block."""
        self._take_back()
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1
            self.activate(*self._wanted)

    def clear(self) -> None:
        """All weights and activations are as they are."""
        self._wanted = {}, {}, self.catalog
        self._take_back()

    def _take_back(self) -> None:
        for module, own, weights in self._changed:
            if vars(module).get(_WEIGHTS) is weights:  # and not another scheduler's by now
                _exchange(module, own, _original(own))
                del vars(module)[_WEIGHTS]
        self._changed.clear()
        self.weights, self.activations = {}, {}

    def _change(self, module: Module, weights: Mapping[str, Read], forward: Callable[..., Any] | None) -> None:
        # Python looks up properties, and torch `forward` where it traces or compiles, on the class and never on the
        # object. The object itself must stay: the optimizer, hooks and whoever holds the module know it.
        cls = type(module)
        if _ORIGINAL in vars(cls) and _WEIGHTS not in vars(module):
            cls = _original(cls)  # it was made as `type(layer)(…)` of a quantized layer
        own = _subclass(cls, weights, forward)
        self._changed.append((module, own, weights))
        vars(module)[_WEIGHTS] = weights
        module.__class__ = own


@contextmanager
def left_by_others(model: Module) -> Iterator[None]:
    """What other schedulers have left quantized is as it was: from here on, or where the block raises, within it."""
    changed = [module for module in model.modules() if _WEIGHTS in vars(module)]
    quantized = [(module, _own_class(module), vars(module)[_WEIGHTS]) for module in changed]
    for module, own, _ in quantized:
        _exchange(module, own, _original(own))
        del vars(module)[_WEIGHTS]
    try:
        yield
    except BaseException:
        for module, own, weights in quantized:
            _exchange(module, _original(own), own)
            vars(module)[_WEIGHTS] = weights
        raise


def _own_class(module: Module) -> type[Module]:
    """The subclass of ours that a module has, or that its class is made of."""
    return next(cls for cls in type(module).__mro__ if _ORIGINAL in vars(cls))


def _original(own: type[Module]) -> type[Module]:
    """What a subclass of ours was made of."""
    original: type[Module] = vars(own)[_ORIGINAL]
    return original


def _subclass(cls: type[Module], names: Iterable[str], forward: Callable[..., Any] | None) -> type[Module]:
    """A class for one module alone, which instances of `cls` can become: it adds no state."""
    # The module of the class too, for it is by this that a tracer knows torch's own layers.
    own: dict[str, Any] = {"__module__": cls.__module__, _ORIGINAL: cls, **{name: _property(name) for name in names}}
    if forward is not None:
        own["forward"] = forward
    return type(f"Quantized{cls.__name__}", (cls,), own)


def _exchange(module: Module, old: type[Module], new: type[Module]) -> None:
    """A class of ours in place of a module's, or the other way round."""
    if type(module) is old:
        module.__class__ = new
    elif old in type(module).__bases__:  # a parametrization was added since, by a class of its own: it stays
        type(module).__bases__ = tuple(new if base is old else base for base in type(module).__bases__)


def _property(name: str) -> property:
    """Found before torch's own way to parameters, `Module.__getattr__`, which is only asked for what no class has."""

    def read(module: Module) -> Tensor:
        # Of this very object: a copy or a replica of the module has a weight of its own.
        weight = module._parameters.get(name)
        if weight is None:  # as torch says it, which asks whether there is such an attribute
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")
        # torch moves a parameter by reading it under its name: what it reads is what it will train.
        if not torch.compiler.is_compiling() and sys._getframe(1).f_code.co_name in _MEANING_THE_PARAMETER:
            return weight
        weights = vars(module).get(_WEIGHTS)
        if weights is None:  # another layer that somebody has made as `type(layer)(…)`
            return weight
        quantized: Tensor = weights[name](weight)
        return quantized

    def write(module: Module, value: Parameter | None) -> None:
        if isinstance(value, Tensor) and not isinstance(value, Parameter):
            module._parameters[name] = value  # a replica of DataParallel has no others
        else:
            module.register_parameter(name, value)

    return property(read, write)
