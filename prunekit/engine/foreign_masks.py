"""Masks from elsewhere: a state of another schedule, masks by name, or the zeros that weights have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from prunekit.components.effects import TakeMasks
from prunekit.components.origin import Origin, Result
from prunekit.errors import StateError, did_you_mean, shortened
from prunekit.model.names import stable_name, without_wrappers
from prunekit.model.parameters import Parameters
from prunekit.plugins.entry_points import this_version

_STATE, _BY_NAME, _ZEROS = "a scheduler's state", "masks by name", "zeros of weights"


@dataclass(frozen=True)
class TakenMasks:
    """Masks for a model's parameters.

    Attributes:
        source: what they were, in words.
        masks: boolean, by the model's own names.
        left_out: weights that are zero all over: a mask would keep them so, whatever they are there for.
    """

    source: str
    masks: dict[str, Tensor]
    left_out: list[str] = field(default_factory=list)

    @property
    def result(self) -> Result:
        """What the ledger is to carry out, by the hand of whoever called `take_masks`."""
        origin = Origin("", "take_masks", "prunekit", this_version())
        return Result(origin, TakeMasks(self.masks, source=self.source))


def foreign_masks(source: object, model: Module) -> TakenMasks:
    """The masks that a source has for a model.

    Args:
        source: a state of a scheduler; a mapping of names to masks, of any type in which they are 0 and 1; the
            `state_dict()` of a model that `torch.nn.utils.prune` has pruned; a model or its `state_dict()`, or None for
            `model` itself, of which the zeros count that weights of two or more dimensions have.
        model: whose parameters are to be masked.

    Raises:
        StateError: what does not fit, all of it; or there is nothing to take.
    """
    names = _Names(Parameters.of(model))
    what, given = _given(model if source is None else source, names)
    masks = _fitting(given, names)
    left_out = [name for name, mask in masks.items() if what == _ZEROS and not mask.any()]
    masks = {name: mask for name, mask in masks.items() if name not in left_out}
    if all(mask.all() for mask in masks.values()):
        raise StateError(f"there is nothing to take from {what}: no mask has a zero in it")
    return TakenMasks(what, masks, left_out)


class _Names:
    """A model's parameters, found by whatever others call them."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters.by_name
        known = {**{name: name for name in parameters.by_name}, **parameters.aliases}
        self._exact = known
        self._bare = {without_wrappers(name): own for name, own in known.items()}

    def of(self, name: object) -> str | None:
        """The model's own name; None where it has no such parameter."""
        name = stable_name(str(name))
        # `torch.nn.utils.prune` calls the mask of `weight` `weight_mask`, and the parameter itself `weight_orig`.
        stem = name.removesuffix("_mask")
        for spelling in (name, stem, f"{stem}_orig"):
            found = self._exact.get(spelling) or self._bare.get(without_wrappers(spelling))
            if found is not None:
                return found
        return None


def _given(source: object, names: _Names) -> tuple[str, Mapping[Any, Any]]:
    """What a source is, and the masks in it by name; None where a parameter has none."""
    if isinstance(source, Module):
        return _of_model(source.state_dict(), Parameters.of(source).by_name)
    if not isinstance(source, Mapping):
        raise StateError(f"masks are taken from a state, a mapping of names, or a model, got {shortened(source)}")
    if {"schedule", "masks"} <= source.keys():
        return _STATE, {name: _together(saved) for name, saved in source["masks"].items()}
    if {"scheduler", "model"} <= source.keys():
        raise StateError("this is a whole checkpoint; masks are taken from its state of the scheduler, ['scheduler']")
    if _is_state_dict(source, names):
        return _of_model(source, {name: value for name, value in source.items() if names.of(name) is not None})
    # Distiller's scheduler saves its masks so.
    given = source["masks_dict"] if isinstance(source.get("masks_dict"), Mapping) else source
    return _BY_NAME, _pruned_by_torch(given) or given


def _of_model(state: Mapping[Any, Any], weights: Mapping[Any, Tensor]) -> tuple[str, Mapping[Any, Any]]:
    """The masks that `torch.nn.utils.prune` has left in a model; where there is none, those of the zeros it has."""
    if masks := _pruned_by_torch(state):
        return _BY_NAME, masks
    # Biases, and the shifts of normalization, begin as zeros that are to be trained.
    there = {name: w.detach() for name, w in weights.items() if not (is_lazy(w) or w.is_meta) and w.dim() > 1}
    kept = {name: weight != 0 for name, weight in there.items()}
    return _ZEROS, {name: mask for name, mask in kept.items() if not mask.all()}


def _pruned_by_torch(state: Mapping[Any, Any]) -> dict[Any, Any]:
    return {n: mask for n, mask in state.items() if str(n).endswith("_mask") and f"{str(n)[:-5]}_orig" in state}


def _together(saved: Mapping[str, Any]) -> Tensor | None:
    """The pruner's mask and the one that a regularizer has left, as one."""
    masks = [mask for mask in (saved["pruned"], saved["kept"]) if mask is not None]
    return masks[0] & masks[-1] if masks else None


def _is_state_dict(given: Mapping[Any, Any], names: _Names) -> bool:
    """Whether these are weights: all parameters of the model, of which one at least is no mask."""
    values = {own: value for name, value in given.items() if (own := names.of(name)) is not None}
    complete = values.keys() == names.parameters.keys() and all(isinstance(v, Tensor) for v in values.values())
    return complete and not all(_is_mask(value) for value in values.values() if not value.is_meta)


def _is_mask(value: Tensor) -> bool:
    value = value.detach().to_dense()
    return bool(((value == 0) | (value == 1)).all())


def _fitting(given: Mapping[Any, Any], names: _Names) -> dict[str, Tensor]:
    """Boolean masks by the model's own names.

    Raises:
        StateError: all that is wrong with any of them.
    """
    masks: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, value in given.items():
        if value is None:
            continue
        own, values = names.of(name), _dense(value)
        problem = _problem(name, own, values, value, names)
        if own is not None and values is not None and not problem:
            mask = (values != 0).to(names.parameters[own].device)
            # Several names of a tied parameter may have one each.
            differs = not torch.equal(masks.setdefault(own, mask), mask)
            problem = f"the mask of {name!r} differs from another one of {own!r}" if differs else ""
        if problem:
            problems.append(problem)
    if problems:
        raise StateError("\n".join(["the masks do not fit, and nothing was changed:", *problems]))
    return masks


def _problem(name: object, own: str | None, values: Tensor | None, given: object, names: _Names) -> str:
    """Why a mask does not fit; empty where it does."""
    if own is None:
        return f"the model has no parameter {name!r}{did_you_mean(str(name), names.parameters)}"
    if values is None or values.is_meta:
        return f"the mask of {name!r} must be a tensor or an array in memory, got {shortened(given)}"
    shape = names.parameters[own].shape
    if values.shape != shape:
        return f"the mask of {name!r} must have the shape {tuple(shape)}, got {tuple(values.shape)}"
    return "" if _is_mask(values) else f"the mask of {name!r} must be 0 and 1, got {_other_values(values)}"


def _dense(value: object) -> Tensor | None:
    """A tensor of what is given: a list or an array of numpy too, and what is sparse made dense."""
    try:
        return torch.as_tensor(value).detach().to_dense()
    except (TypeError, ValueError, RuntimeError):
        return None


def _other_values(tensor: Tensor) -> str:
    values = tensor[(tensor != 0) & (tensor != 1)].tolist()
    return ", ".join(f"{value:g}" for value in values[:3]) + ", …" * (len(values) > 3)
