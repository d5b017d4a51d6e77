"""Stable names for a model's parameters, whatever wraps or parametrizes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch.nn import Module, Parameter

from prunekit.model.layers import TRANSPOSED_CONVOLUTION, operation_of
from prunekit.model.names import stable_name

_PARAMETRIZATIONS = re.compile(r"(^|\.)parametrizations\.[^.]+$")


@dataclass(frozen=True)
class Parameters:
    """A model's parameters by name, and the further names of tied ones."""

    by_name: dict[str, Parameter]
    aliases: dict[str, str]

    @classmethod
    def of(cls, model: Module) -> Parameters:
        """The parameters of a model as they are now, each once."""
        by_name: dict[str, Parameter] = {}
        names: dict[int, str] = {}
        aliases: dict[str, str] = {}
        # With duplicates: a schedule may name a tied parameter by any of its names.
        for raw, parameter in model.named_parameters(remove_duplicate=False):
            name = stable_name(raw)
            first = names.setdefault(id(parameter), name)
            if first == name:
                by_name[name] = parameter
            else:
                aliases[name] = first
        return cls(by_name, aliases)


def owners(model: Module) -> dict[str, Module]:
    """Parameter -> the module that holds it, by stable name; of a tied one, the first."""
    found: dict[str, Module] = {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        # A parametrized weight lies in a module of torch's inside the layer; its owner is the layer.
        holder = modules[_PARAMETRIZATIONS.sub("", path)]
        for own in dict(module.named_parameters(recurse=False)):
            found.setdefault(stable_name(f"{path}.{own}" if path else own), holder)
    return found


def transposed(model: Module) -> dict[str, str]:
    """The weights of transposed convolutions, with the class of each.

    Their dimension 0 is inputs and 1 outputs, the other way round than `Filters` and `Channels` have it.
    """
    weights = {name: owner for name, owner in owners(model).items() if name.endswith("weight")}
    return {n: type(owner).__name__ for n, owner in weights.items() if operation_of(owner) is TRANSPOSED_CONVOLUTION}
