"""Other copies of the model (an EMA, the best checkpoint): the masks in force put into their weights, by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from prunekit.engine.quantizers import Quantizers
from prunekit.errors import PrunekitError, did_you_mean, shortened
from prunekit.model.masks import Masks
from prunekit.model.names import stable_name, without_wrappers
from prunekit.model.parameter_mask import ParameterMask, count_nonzero
from prunekit.model.parameters import Parameters

Copy = Module | Mapping[str, Tensor]
"""A model, or the `state_dict()` of one."""


@dataclass(frozen=True)
class _Place:
    """A tensor of a copy, and the mask of the parameter that it is a copy of."""

    name: str
    tensor: Tensor
    entry: ParameterMask

    @property
    def is_trained(self) -> bool:
        """Whether it is no copy, but the very memory that is being trained."""
        own = self.entry.parameter
        return self.tensor.device == own.device and self.tensor.data_ptr() == own.data_ptr() and own.numel() > 0

    def zero(self) -> None:
        # Filled, not multiplied: -1.0 * 0 is -0.0, and inf * 0 is NaN.
        self.tensor.detach().masked_fill_(~self.entry.mask.to(self.tensor.device), 0)

    def zero_and_count(self) -> tuple[float, float]:
        """Zero what is masked; the sparsity before and after."""
        before = self._sparsity()
        self.zero()
        return before, self._sparsity()

    def scale(self) -> None:
        if self.entry.scale != 1:
            self.tensor.detach().mul_(self.entry.scale)

    def _sparsity(self) -> float:
        return (self.tensor.numel() - count_nonzero(self.tensor)) / max(self.tensor.numel(), 1)


def apply_masks(copy: Copy, masks: Masks, model: Module) -> dict[str, tuple[float, float]]:
    """Zero in a copy of `model` what is masked in it; name -> the sparsity before and after.

    Raises:
        PrunekitError: a mask fits nothing in the copy; all such masks are told, and nothing has been changed.
    """
    places = _places(copy, masks, model)
    # Its zeros would be there for the optimizer too, and nothing would take them out again.
    seen = [place.name for place in places if place.entry.only_in_forward and place.is_trained]
    if seen:
        raise PrunekitError(
            f"{', '.join(map(repr, seen))}: the very memory that is being trained, which only the forward pass sees "
            "masked; give a copy, or evaluate within masked()"
        )
    return {place.name: place.zero_and_count() for place in places}


@contextmanager
def masked_copy(copy: Copy, masks: Masks, model: Module) -> Iterator[None]:
    """All masks applied to a copy of `model`. What only the forward pass sees is undone at the end.

    Raises:
        PrunekitError: as of `apply_masks`.
    """
    places = _places(copy, masks, model)
    copies = [place for place in places if not place.is_trained]
    hidden = [place for place in copies if place.entry.only_in_forward]
    saved = [(place.tensor, place.tensor.detach().clone()) for place in hidden]
    # The model itself in another wrapper (DistributedDataParallel) is no copy.
    with masks.applied() if len(copies) < len(places) else nullcontext():
        for place in copies:
            place.zero()
        for place in hidden:
            place.scale()
        try:
            yield
        finally:
            for tensor, values in saved:
                tensor.detach().copy_(values)


def _places(copy: Copy, masks: Masks, model: Module) -> list[_Place]:
    """Where in a copy the masks belong; a tied parameter that is no longer tied there has several places."""
    there = _tensors(copy)
    found = _Found(there)
    wanted = {name: name for name in masks.entries}
    aliases = Parameters.of(model).aliases.items()
    wanted |= {alias: name for alias, name in aliases if name in masks.entries and found[alias]}
    problems: list[str] = []
    places: dict[int, _Place] = {}
    for name, masked in wanted.items():
        entry = masks.entries[masked]
        if problem := _problem(name, found[name], there, entry):
            problems.append(problem)
        else:
            tensor = there[found[name][0]]
            # Where it is tied in the copy too, it is one place: what has a scale must not be scaled twice.
            places.setdefault(tensor.data_ptr() or id(tensor), _Place(name, tensor, entry))
    if problems:
        raise PrunekitError("\n".join(["the masks do not fit, and nothing was changed:", *problems]))
    return list(places.values())


def _tensors(copy: object) -> dict[str, Tensor]:
    if isinstance(copy, Module):
        found = Parameters.of(copy)
        return {**found.by_name, **{alias: found.by_name[name] for alias, name in found.aliases.items()}}
    if isinstance(copy, Mapping):
        return {stable_name(str(name)): value for name, value in copy.items()}
    raise PrunekitError(f"masks are put into a model or a state_dict, got {shortened(copy)}")


class _Found(dict[str, list[str]]):
    """Parameter -> the names in a copy that mean it: its own, or else those that are the same without wrappers."""

    def __init__(self, there: Iterable[str]) -> None:
        super().__init__()
        self._there = frozenset(there)
        self._bare: dict[str, list[str]] = defaultdict(list)
        for name in there:
            self._bare[without_wrappers(name)].append(name)

    def __missing__(self, name: str) -> list[str]:
        self[name] = [name] if name in self._there else self._bare.get(without_wrappers(name), [])
        return self[name]


def _problem(name: str, found: list[str], there: Mapping[str, object], entry: ParameterMask) -> str:
    """Why a mask can't be put into a copy; empty where it can."""
    if not found:
        return f"{name!r} is not in it{did_you_mean(name, there)}"
    if len(found) > 1:
        return f"{name!r} may be {' or '.join(map(repr, found))}"
    value, shape = there[found[0]], tuple(entry.mask.shape)
    if not isinstance(value, Tensor):
        return f"{name!r} must be a tensor {shape}, got {shortened(value)}"
    if value.shape != entry.mask.shape:
        return f"{name!r} must have the shape {shape}, got {tuple(value.shape)}"
    unusual = _unusual(value)
    return f"{name!r} must be a dense tensor in memory, got one {unusual}" if unusual else ""


def _unusual(tensor: Tensor) -> str:
    """What keeps a tensor from being written to, or its zeros from being counted; empty where nothing does."""
    if tensor.is_meta:
        return "on meta"
    if tensor.layout != torch.strided:
        return f"that is {tensor.layout}"
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return "of which several elements are one place in memory"
    return f"of {tensor.dtype}" if tensor.is_floating_point() and tensor.itemsize == 1 else ""


def must_be_copyable(model: Module, memo: Mapping[int, object], quantizers: Quantizers, in_step: bool) -> None:
    """Whether a scheduler can be copied together with its model.

    Raises:
        PrunekitError: it can't be; the message says what to do instead.
    """
    if in_step:
        raise PrunekitError(
            "a scheduler can't be copied between on_minibatch_begin and the optimizer's step: the model may hold "
            "weights that only this forward pass sees; copy it between two mini-batches"
        )
    if id(model) in memo and not vars(memo[id(model)]):
        raise PrunekitError(
            f"{type(model).__name__} holds the scheduler that it is trained by, and can't be copied with it: keep the "
            "scheduler beside the model, not in an attribute of it"
        )
    if quantizers.policies:
        raise PrunekitError(
            "a scheduler with a quantizer can't be copied, for the model reads its weights through it: make another "
            "scheduler, and load this one's state_dict()"
        )
