"""What a component answers when it is asked for masks: checked, and whether it has kept its hands off the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit.components.context import Context
from prunekit.errors import PluginError


def chosen_masks(
    component: Any, seen: Mapping[str, Parameter], context: Context, parameters: Mapping[str, Parameter]
) -> Mapping[str, Tensor]:
    """A component's answer, checked."""
    with torch.no_grad(), hands_off("compute_masks", parameters):
        chosen: Mapping[str, Tensor] = component.compute_masks(seen, context)
    must_own(chosen, parameters, "compute_masks")
    return chosen


@contextmanager
def hands_off(method: str, parameters: Mapping[str, Parameter]) -> Iterator[None]:
    """Whether a component's method has left the weights alone."""
    # torch counts writes in place; comparing values would take a copy of all weights.
    versions = {name: parameter._version for name, parameter in parameters.items()}
    yield
    for name, parameter in parameters.items():
        if parameter._version != versions[name]:
            raise PluginError(f"{method} changed {name!r} in place; it must return masks and leave weights alone")


def must_own(chosen: object, parameters: Mapping[str, Parameter], method: str) -> None:
    if not isinstance(chosen, Mapping):
        raise PluginError(f"{method} must return a mapping of parameter names to masks, got {chosen!r}")
    for name in chosen:
        if name not in parameters:
            raise PluginError(f"{method} returned a mask for {name!r}, which is none of the policy's parameters")
