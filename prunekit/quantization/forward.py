"""Quantization in the forward pass: reading a parameter gives other values, and an activation passes others on.

Parameters keep their names and their float values, modules their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from prunekit.quantization.catalog import Catalog
from prunekit.quantization.forward_passes import forward_passes
from prunekit.quantization.values import QuantizedActivation, QuantizedWeight

_WEIGHTS = "_prunekit_quantized_weights"


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
        self._changed: list[tuple[Module, type[Module], Mapping[str, QuantizedWeight]]] = []

    def activate(
        self,
        weights: Mapping[Parameter, QuantizedWeight],
        activations: Mapping[str, QuantizedActivation],
        catalog: Catalog | None,
    ) -> None:
        """From now on these parameters and activations are quantized, all others are as they are.

        `catalog` says where the activations are; it is needed where there are any.
        """
        # The values compare by identity. New classes for the same ones would make torch.compile compile anew.
        if (weights, activations) == (self.weights, self.activations):
            return
        self.clear()
        self.weights, self.activations, self.catalog = weights, activations, catalog
        forwards = {} if catalog is None else forward_passes(catalog, activations)
        for module in self._model.modules() if weights or activations else ():
            own = {name: weights[p] for name, p in module._parameters.items() if p is not None and p in weights}
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
        weights, activations, catalog = self.weights, self.activations, self.catalog
        self.clear()
        try:
            yield
        finally:
            self.activate(weights, activations, catalog)

    def clear(self) -> None:
        """All weights and activations are as they are."""
        for module, cls, weights in self._changed:
            if vars(module).get(_WEIGHTS) is weights:  # and not another scheduler's by now
                module.__class__ = cls
                del vars(module)[_WEIGHTS]
        self._changed.clear()
        self.weights, self.activations = {}, {}

    def _change(
        self, module: Module, weights: Mapping[str, QuantizedWeight], forward: Callable[..., Any] | None
    ) -> None:
        # Python looks up properties, and torch `forward` where it traces or compiles, on the class and never on the
        # object. The object itself must stay: the optimizer, hooks and whoever holds the module know it.
        self._changed.append((module, type(module), weights))
        vars(module)[_WEIGHTS] = weights
        module.__class__ = _subclass(type(module), weights, forward)


@contextmanager
def left_by_others(model: Module) -> Iterator[None]:
    """What other schedulers have left quantized is as it was: from here on, or where the block raises, within it."""
    quantized = [
        (module, type(module), vars(module)[_WEIGHTS]) for module in model.modules() if _WEIGHTS in vars(module)
    ]
    for module, cls, _ in quantized:
        module.__class__ = cls.__bases__[0]
        del vars(module)[_WEIGHTS]
    try:
        yield
    except BaseException:
        for module, cls, weights in quantized:
            module.__class__ = cls
            vars(module)[_WEIGHTS] = weights
        raise


def _subclass(cls: type[Module], names: Iterable[str], forward: Callable[..., Any] | None) -> type[Module]:
    """A class for one module alone, which instances of `cls` can become: it adds no state."""
    # The module of the class too, for it is by this that a tracer knows torch's own layers.
    own: dict[str, Any] = {"__module__": cls.__module__, **{name: _property(name) for name in names}}
    if forward is not None:
        own["forward"] = forward
    return type(f"Quantized{cls.__name__}", (cls,), own)


def _property(name: str) -> property:
    """Found before torch's own way to parameters, `Module.__getattr__`, which is only asked for what no class has."""

    def read(module: Module) -> Tensor:
        # Of this very object: a copy or a replica of the module has a weight of its own.
        weight = module._parameters[name]
        assert weight is not None
        quantized: Tensor = vars(module)[_WEIGHTS][name](weight)
        return quantized

    def write(module: Module, value: Parameter | None) -> None:
        if isinstance(value, Tensor) and not isinstance(value, Parameter):
            module._parameters[name] = value  # a replica of DataParallel has no others
        else:
            module.register_parameter(name, value)

    return property(read, write)
