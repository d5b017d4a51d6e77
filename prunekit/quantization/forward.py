"""Quantization in the forward pass: reading a parameter gives other values, and an activation passes others on.

Parameters keep their names and their float values, modules their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from prunekit.components.context import Context
from prunekit.components.quantizer import Quantizer
from prunekit.errors import PluginError
from prunekit.quantization.catalog import Catalog
from prunekit.quantization.forward_passes import forward_passes
from prunekit.quantization.quantizable import QuantizesModules

_WEIGHTS = "_prunekit_quantized_weights"


@dataclass(eq=False)
class QuantizedWeight:
    """What is read in place of one weight. Plain enough for torch.compile to look through.

    Attributes:
        name: of the parameter.
        quantizer: makes the values.
        context: what it may know in this epoch.
        masks: what is masked stays zero.
        failed: told of an exception before it goes on.
    """

    name: str
    quantizer: Quantizer
    context: Context
    masks: Mapping[str, Tensor]
    failed: Callable[[Exception], None]

    def __call__(self, weight: Tensor) -> Tensor:
        """The values that the forward pass uses for the weight."""
        if torch.compiler.is_compiling():
            return self._values(weight)
        try:
            return self._values(weight)
        except Exception as error:
            self.failed(error)
            raise

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedWeight:
        """A copy of the model reads its weights as the model does."""
        return self

    def _values(self, weight: Tensor) -> Tensor:
        values = self.quantizer.quantize(self.name, weight, self.context)
        _must_stand_for(values, weight, self.name)
        mask = self.masks.get(self.name)
        return values if mask is None else values * mask.to(values.device)


@dataclass(eq=False)
class QuantizedActivation:
    """What is passed on in place of one activation's output."""

    name: str
    quantizer: QuantizesModules
    context: Context
    failed: Callable[[Exception], None]

    def __call__(self, output: Tensor) -> Tensor:
        """The values that go on in place of the output."""
        if torch.compiler.is_compiling():
            return self.quantizer.quantize_activation(self.name, output, self.context)
        try:
            values = self.quantizer.quantize_activation(self.name, output, self.context)
            _must_stand_for(values, output, self.name, "quantize_activation")
            return values
        except Exception as error:
            self.failed(error)
            raise


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
        self._changed: list[tuple[Module, type[Module]]] = []

    def activate(
        self,
        weights: Mapping[Parameter, QuantizedWeight],
        activations: Mapping[str, QuantizedActivation],
        catalog: Catalog | None,
    ) -> None:
        """From now on these parameters and activations are quantized, all others are as they are.

        `catalog` says where the activations are; it is needed where there are any.
        """
        if (weights, activations) == (self.weights, self.activations):
            return
        self.clear()
        self.weights, self.activations, self.catalog = weights, activations, catalog
        forwards = {} if catalog is None else forward_passes(catalog, activations)
        for module in self._model.modules() if weights or activations else ():
            own = {name: weights[p] for name, p in module._parameters.items() if p is not None and p in weights}
            forward = forwards.get(module)
            if own or forward is not None:
                self._changed.append((module, type(module)))
                vars(module)[_WEIGHTS] = own
                module.__class__ = _quantized(type(module), own, forward)

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
        for module, cls in self._changed:
            module.__class__ = cls
            del vars(module)[_WEIGHTS]
        self._changed.clear()
        self.weights, self.activations = {}, {}


def _must_stand_for(values: Any, original: Tensor, name: str, method: str = "quantize") -> None:
    if not isinstance(values, Tensor) or values.shape != original.shape or values.dtype != original.dtype:
        got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
        raise PluginError(f"{method} must return {original.dtype} {tuple(original.shape)} for {name!r}, got {got}")


def _quantized(cls: type[Module], names: Iterable[str], forward: Callable[..., Any] | None) -> type[Module]:
    own: dict[str, Any] = {"__module__": cls.__module__, **{name: _property(name) for name in names}}
    if forward is not None:
        own["forward"] = forward
    return type(f"Quantized{cls.__name__}", (cls,), own)


def _property(name: str) -> property:
    def read(module: Module) -> Tensor:
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
