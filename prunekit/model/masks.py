"""The masks in force and their upkeep: exact zeros after every optimizer step, without a line in the loop.

Long on purpose: a mask, the weights under it and what is set aside meanwhile change together, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, TypeGuard
from weakref import ref

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit.errors import PluginError, PrunekitError, did_you_mean, shortened
from prunekit.model.parameter_mask import EnforcedMasks, ParameterMask, Zeros, count_nonzero, small
from prunekit.model.parameters import without_values
from prunekit.model.unmasked import Unmasked


class Masks(Mapping[str, Tensor]):
    """Parameter name -> boolean mask (True keeps), for the parameters that have one. Read-only from outside.

    What changes masks or weights comes in two parts, so that several changes can be made or none: `prepare_…` takes
    all the memory that is needed, and may fail; the function that it returns does it.

    Attributes:
        entries: parameter name -> its mask and how that is applied; an attribute, since each mini-batch asks for it.
        in_force: the parameters whose masks are enforced, for whoever outlives this and must keep none of them.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters: Mapping[str, Parameter] = dict(parameters)
        self.entries: dict[str, ParameterMask] = {}
        self.in_force: dict[str, ref[Parameter]] = {}
        self._enforced: dict[str, ParameterMask] = {}
        self._groups: dict[frozenset[str] | None, list[EnforcedMasks]] = {}
        self._in_forward: dict[str, ParameterMask] = {}
        self._active: frozenset[str] = frozenset()
        self._stale = False
        self._copies: dict[str, Unmasked] = {}
        self._released = False

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        # A pruner of whole groups gives a view of a few values: who reads the mask gets one value for each weight.
        entry.mask = entry.mask.contiguous()
        return entry.mask

    def __contains__(self, name: object) -> bool:
        # Not Mapping's, which catches a KeyError: torch.compile would not notice when there is a mask at last.
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    # The parameters behind the names

    def unfit(self, parameters: Mapping[str, Parameter]) -> dict[str, str]:
        """Parameter -> what is wrong with it, of those with a mask that could not go on with these parameters.

        All names must be there.
        """
        shapes = {name: (entry.mask.shape, parameters[name].shape) for name, entry in self.entries.items()}
        return {
            name: f"the mask of {name!r} is {tuple(mask)}, and the parameter is {tuple(shape)} now"
            for name, (mask, shape) in shapes.items()
            if mask != shape
        }

    def rebind(self, parameters: Mapping[str, Parameter]) -> None:
        """The same masks on the parameters that bear these names now. All of them must fit."""
        self.parameters = dict(parameters)
        for name, entry in self.entries.items():
            if entry.parameter is not self.parameters[name]:
                self._put(name, entry.changed(parameter=self.parameters[name]))

    # What fits

    def must_be_names(self, names: Iterable[str]) -> None:
        """Whether the model has parameters of these names.

        Raises:
            PluginError: a name that the model lacks.
        """
        for name in names:
            if name not in self.parameters:
                raise PluginError(f"the model has no parameter {name!r}{did_you_mean(str(name), self.parameters)}")

    def must_be_masks(self, masks: Mapping[str, object]) -> None:
        """Whether these are masks of the model's parameters.

        Raises:
            PluginError: a name that the model lacks, or a mask that does not fit its parameter.
        """
        self._must_be_by_name(masks, "masks")
        for name, mask in masks.items():
            shape = self._shape(name)
            if not _is_plain(mask) or mask.dtype != torch.bool or mask.shape != shape:
                raise PluginError(f"the mask of {name!r} must be torch.bool {tuple(shape)}, got {_described(mask)}")

    def must_be_values(self, values: Mapping[str, object]) -> None:
        """Whether these can take the place of the model's parameters.

        Raises:
            PluginError: a name that the model lacks, or values that do not fit its parameter.
        """
        self._must_be_by_name(values, "values")
        for name, value in values.items():
            shape = self._shape(name)
            if not _is_plain(value) or not value.is_floating_point() or value.shape != shape:
                raise PluginError(f"the values of {name!r} must be floating {tuple(shape)}, got {_described(value)}")

    def _must_be_by_name(self, tensors: object, what: str) -> None:
        if not isinstance(tensors, Mapping):
            raise PluginError(f"{what} must be a mapping of parameter names to tensors, got {shortened(tensors)}")
        self.must_be_names(tensors)

    def _shape(self, name: str) -> torch.Size:
        parameter = self.parameters[name]
        if what := without_values(parameter):
            raise PluginError(f"{name!r} {what}")
        return parameter.shape

    # Changes

    def set(
        self, name: str, mask: Tensor, *, forward_only: bool = False, double_copies: bool = False, scale: float = 1.0
    ) -> tuple[float, float]:
        """A pruner's mask, in place of the one it had; applied at once unless only the forward pass sees it.

        Returns:
            The parameter's sparsity before and after.
        """
        return self.prepare_mask(name, mask, forward_only=forward_only, double_copies=double_copies, scale=scale)()

    def prepare_mask(self, name: str, mask: Tensor, **options: Any) -> Callable[[], tuple[float, float]]:
        """`set`, in two parts."""
        former = self.entries.get(name)
        entry = self._entry(name).changed(pruned=small(mask), **options)

        def set_mask() -> tuple[float, float]:
            if self.entries.get(name) is not former:
                return self.set(name, mask, **options)  # another change came in between
            # Where only the forward pass sees the mask, its zeros are not among the weights that would be counted.
            counting = not (entry.only_in_forward or (former is not None and former.only_in_forward))
            before = 0.0 if counting else self.sparsity(name)
            self._put(name, entry)
            if counting:
                return entry.apply_and_count()
            if not (entry.forward_only or entry.double_copies):
                entry.apply()
            return before, self.sparsity(name)

        return set_mask

    def keep(self, name: str) -> tuple[float, float]:
        """Enforce the parameter's mask after every step from now on; its sparsity before and after."""
        before, former = self.sparsity(name), self.entries.get(name)
        if former is not None:
            entry = former.changed(forward_only=False, double_copies=False, scale=1.0)
            self._put(name, entry)
            entry.apply()
        return before, self.sparsity(name)

    def intersect(self, name: str, mask: Tensor) -> tuple[float, float]:
        """A mask that stays besides any pruner's; the parameter's sparsity before and after."""
        return self.prepare_kept(name, mask)()

    def prepare_kept(self, name: str, mask: Tensor) -> Callable[[], tuple[float, float]]:
        """`intersect`, in two parts."""
        former, entry = self.entries.get(name), self._entry(name)
        kept = mask if entry.kept is None else entry.kept & mask
        # Zeroed by itself: the pruner's mask beside it may be one that must not get into the weights.
        entry, zeros = entry.changed(kept=kept), Zeros(self.parameters[name], kept)

        def intersect() -> tuple[float, float]:
            if self.entries.get(name) is not former:
                return self.intersect(name, mask)  # another change came in between
            before = self.sparsity(name)
            self._put(name, entry)
            zeros.apply()
            return before, self.sparsity(name)

        return intersect

    def drop(self, name: str) -> None:
        """Forget the pruner's mask; the weights stay as they are."""
        former = self.entries.pop(name, None)
        self._stale = True
        # Zeros that a regularizer has left for good are not the pruner's to forget.
        if former is not None and former.kept is not None:
            self._put(name, former.changed(pruned=None, forward_only=False, double_copies=False, scale=1.0))

    def prepare_weights(self, name: str, values: Tensor) -> Callable[[], None]:
        """New values for a parameter; what is masked after the optimizer's step stays zero."""
        parameter = self.parameters[name]
        values = values.to(parameter.device, parameter.dtype)

        def set_weights() -> None:
            parameter.detach().copy_(values)
            entry = self.entries.get(name)
            # Not `entry` itself: a mask that only the forward pass sees must not get into the weights.
            enforced = None if entry is None else entry.enforced()
            if enforced is not None:
                enforced.apply()

        return set_weights

    def prepare_zeros(self, name: str, mask: Tensor) -> Callable[[], None]:
        """Set weights to zero once, where the mask is False."""
        return Zeros(self.parameters[name], mask).apply

    # Upkeep

    def enforce(self, only: frozenset[str] | None = None) -> None:
        """The optimizer has stepped: zero what is pruned. No synchronization with the device.

        Args:
            only: the parameters to see to, such as those of one optimizer; all that have a mask, by default. Cheap
                for a set that it was given before.
        """
        for group in self._groups_of(only) if self.entries else ():
            group.apply()

    def hold(self) -> None:
        """Zero what is pruned where somebody has written to weights since that was done last.

        The optimizer has not stepped since: a checkpoint was loaded, a layer initialized anew, a model moved.
        """
        # While unmasked weights are set aside, those in their place are as the forward pass is to see them.
        for group in () if self._copies else self._groups_of(None):
            if not group.is_intact:
                group.apply()

    def enforce_others(self, names: frozenset[str]) -> None:
        """Zero what is pruned of all parameters but these."""
        if others := self.entries.keys() - names:
            self.enforce(frozenset(others))

    def activate(self, names: Iterable[str]) -> None:
        """The parameters whose policy acts in this epoch: only their forward-only masks are applied."""
        self._active = frozenset(names)
        self._stale = True
        for entry in self.entries.values():
            if entry.address != entry.parameter.data_ptr():
                entry.look()  # the model has moved

    def begin_forward(self) -> None:
        """Masks are in the weights: those that are enforced, and those that only the forward pass sees.

        Unmasked weights are set aside where asked.
        """
        if not self.entries:
            return
        if any(entry.address != entry.parameter.data_ptr() for entry in self._in_forward.values()):
            self._sort()
        self.hold()
        for name, entry in self._in_forward.items():
            # Copied, not divided by the scale afterwards: weights of 16 bits would not come back bit for bit.
            weights = entry.parameter.detach().clone() if entry.restored else None
            entry.apply_in_forward()
            if weights is not None:
                self._copies[name] = Unmasked(entry, weights)

    @property
    def hides(self) -> bool:
        """Whether a forward pass sees other weights than the optimizer."""
        return bool(self.entries and self._in_forward)

    def begin_forward_again(self, names: frozenset[str]) -> None:
        """An optimizer of these has stepped, and another forward pass may follow in the same mini-batch.

        What it is not to see is set aside in any case, so that the step is not lost where none follows.
        """
        for name in [name for name in self._in_forward if name in names]:
            entry, weights = self._in_forward[name], self.parameters[name].detach().clone()
            entry.apply_in_forward()
            self._copies[name] = Unmasked(entry, weights)

    def end_forward(self, only: frozenset[str] | None = None) -> None:
        """Put the unmasked weights of these parameters back, if any were set aside and nobody has written others."""
        if not self._copies:
            return
        for name in [name for name in self._copies if only is None or name in only]:
            self._copies.pop(name).put_back()

    def release(self) -> None:
        """Training has ended: the weights are what the forward pass saw, and nothing is enforced any more."""
        if self._released:
            return
        self.end_forward()
        for name, entry in [*self.entries.items()]:
            entry.apply_in_forward()
            if entry.only_in_forward:
                self._put(name, entry.changed(forward_only=False, double_copies=False, scale=1.0))
        self._released = True

    def abandon(self) -> None:
        """Nothing is enforced any more, and weights stay as they are: they may be new ones that nobody has masked."""
        self.end_forward()
        self._released = True

    def take_up(self) -> None:
        """Training goes on after it had ended: the masks are in force again."""
        if self._released:
            self._released = False
            self.enforce()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """All masks applied to the weights, those that only the forward pass sees too; undone at the end."""
        # A mini-batch may be under way: its weights are masked or scaled already, and not what to return to.
        self.end_forward()
        # Only these: the zeros of all other masks belong in the weights anyway, unless training has ended.
        hidden = [entry for entry in self.entries.values() if entry.only_in_forward or self._released]
        copies = [(entry.parameter, entry.parameter.detach().clone()) for entry in hidden]
        for entry in self.entries.values():
            entry.apply_in_forward()
        try:
            yield
        finally:
            for parameter, weights in copies:
                parameter.detach().copy_(weights)

    def sparsity(self, name: str, values: Tensor | None = None) -> float:
        """The fraction of zeros in a parameter as the forward pass sees it, counted from the tensor.

        `values` stand in for the parameter's own, where a quantizer makes others of them.
        """
        parameter, entry = self.parameters[name].detach() if values is None else values, self.entries.get(name)
        if entry is not None and not self._released and (entry.only_in_forward or not entry.is_intact):
            parameter = parameter.masked_fill(~entry.mask.to(parameter.device), 0)
        return (parameter.numel() - count_nonzero(parameter)) / max(parameter.numel(), 1)

    # State

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Masks and flags by parameter name."""
        return {
            name: {
                "pruned": _clone(entry.pruned),
                "kept": _clone(entry.kept),
                "forward_only": entry.forward_only,
                "double_copies": entry.double_copies,
                "scale": entry.scale,
            }
            for name, entry in self.entries.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace all masks, and apply those that are enforced. Names and shapes must fit (the scheduler checks)."""
        self.entries.clear()
        for name, saved in state.items():
            flags = {key: saved[key] for key in ("forward_only", "double_copies", "scale")}
            # Cloned, since the same state may be loaded again, or by another scheduler.
            masks = {key: _clone(saved[key]) for key in ("pruned", "kept")}
            self._put(name, self._entry(name).changed(**masks, **flags))
        self._stale = True
        self.enforce()

    def snapshot(self, names: Iterable[str]) -> Callable[[], None]:
        """Remember masks and weights of these parameters; the function that is returned puts them back."""
        # Shallow is enough: a change makes another entry, which shares only the factor's memory, and `_put` fills that.
        saved = {name: (self.parameters[name].detach().clone(), copy(self.entries.get(name))) for name in names}

        def restore() -> None:
            for name, (weights, entry) in saved.items():
                self.parameters[name].detach().copy_(weights)
                self.entries.pop(name, None)
                if entry is not None:
                    entry.combine()
                    self._put(name, entry)
            self._stale = True

        return restore

    def _entry(self, name: str) -> ParameterMask:
        """The parameter's entry, or what one begins as."""
        return self.entries.get(name) or ParameterMask(self.parameters[name])

    def _put(self, name: str, entry: ParameterMask) -> None:
        # Not before: until now the factor's memory, shared with the entry before it, held the mask that was in force.
        entry.fill()
        self.entries[name] = entry
        self._stale = True

    def _groups_of(self, only: frozenset[str] | None) -> list[EnforcedMasks]:
        """The masks of these parameters that hold after the step, sorted into as few calls as they need."""
        if self._stale or any(group.moved for group in self._groups.get(only, ())):
            self._sort()
        if only not in self._groups:
            self._groups[only] = self._grouped(only)
        return self._groups[only]

    def _grouped(self, only: frozenset[str] | None) -> list[EnforcedMasks]:
        if only is None:
            return EnforcedMasks.groups(self._enforced.values())
        # Looked up by the smaller side: where each parameter has an optimizer of its own, not all are gone through.
        names = [n for n in only if n in self._enforced] if len(only) == 1 else [n for n in self._enforced if n in only]
        if len(names) == len(self._enforced):
            return self._groups_of(None)
        return EnforcedMasks.groups(self._enforced[name] for name in names)

    def _sort(self) -> None:
        if unfit := self.unfit(self.parameters):
            raise PrunekitError("\n".join(unfit.values()))
        enforced = {name: entry.enforced() for name, entry in self.entries.items()}
        self._enforced = {name: entry for name, entry in enforced.items() if entry is not None}
        self.in_force.clear()
        self.in_force.update((name, ref(entry.parameter)) for name, entry in self._enforced.items())
        self._groups.clear()
        self._in_forward = {n: e for n, e in self.entries.items() if e.acts(n in self._active)}
        self._stale = False


def _clone(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.clone()


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor with all its elements in memory: neither sparse nor on the device `meta`."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return shortened(value)
    unusual = [str(value.layout)] * (value.layout != torch.strided) + ["on meta"] * value.is_meta
    return " ".join([f"{value.dtype} {tuple(value.shape)}", *unusual])
