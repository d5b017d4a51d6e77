"""Stable names for a model's parameters, whatever wraps or parametrizes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn import Module, Parameter
from torch.nn.parameter import is_lazy

from prunekit.errors import PrunekitError
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


def without_values(parameter: Parameter) -> str | None:
    """Why a parameter can't be worked on yet, and what is to be done; None where it can."""
    if is_lazy(parameter):
        return "has no shape before the first forward pass: run one batch through the model first"
    if parameter.is_meta:
        how = "model.to_empty(device=…) or model.load_state_dict(…, assign=True)"
        return f"is on the device meta and has no values: give it some first, with {how}"
    return None


def must_have_values(parameters: Mapping[str, Parameter], name: str | None = None) -> dict[str, Parameter]:
    """Parameters without those of lazy layers that have not run yet: they have no elements.

    Args:
        parameters: of a model, by name.
        name: the only one that matters, and must not be lazy either.

    Raises:
        PrunekitError: one has no values.
    """
    for wanted, parameter in parameters.items():
        skipped = is_lazy(parameter) if name is None else wanted != name
        if not skipped and (what := without_values(parameter)):
            raise PrunekitError(f"{wanted!r} {what}")
    return {name: parameter for name, parameter in parameters.items() if not is_lazy(parameter)}


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
