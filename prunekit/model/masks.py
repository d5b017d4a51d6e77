"""The masks in force and their upkeep: exact zeros after every optimizer step, without a line in the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from prunekit.errors import PluginError, did_you_mean
from prunekit.model.scratch import scratch

_NO_FACTOR = torch.empty(0)
_CHUNK = 2**16
_LONG = 16
"""From how many weights on a CPU multiplies them by one factor sooner than each by its own."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(eq=False)
class _Entry:
    """One parameter's mask: the pruner's, the one a regularizer left for good, and both together as a factor.

    The factor is 0 or 1 for the weight's bits taken as an integer: exact where a product of floats is not, since
    -1 * 0 is -0 and inf * 0 is NaN.
    """

    parameter: Parameter
    pruned: Tensor | None = None
    kept: Tensor | None = None
    forward_only: bool = False
    double_copies: bool = False
    scale: float = 1.0
    mask: Tensor = field(init=False)
    factor: Tensor = field(init=False, default=_NO_FACTOR)
    bits: Tensor = field(init=False)
    address: int = field(init=False)

    def combine(self) -> None:
        device = self.parameter.device
        parts = [part.to(device) for part in (self.pruned, self.kept) if part is not None]
        self.mask = parts[0] if len(parts) == 1 else parts[0] & parts[1]
        self.factor = _factor(self.mask, self.parameter, self.factor)
        self.look()

    def look(self) -> None:
        """Take the parameter's memory, which it shares with this view, as integers."""
        self.bits = _bits(self.parameter)
        self.address = self.parameter.data_ptr()

    def apply(self) -> None:
        if self.address != self.parameter.data_ptr():
            self.look()
        self.bits.mul_(self.factor)

    def apply_and_count(self) -> tuple[float, float]:
        """Zero what is masked, and say the sparsity before and after: of whole rows on a CPU in one go."""
        weights, thin = self.parameter.detach(), _thin(self.mask)
        number = max(weights.numel(), 1)
        seen_by_numpy = weights.dtype in (torch.float32, torch.float64) and weights.is_contiguous() and weights.numel()
        if thin is self.mask or not seen_by_numpy:
            before = count_nonzero(weights)
            self.apply()
            after = count_nonzero(weights)
            return (weights.numel() - before) / number, (weights.numel() - after) / number
        rows = weights.numpy().reshape(thin.numel(), -1)
        before, after = _zero_rows(rows, thin.reshape(-1).numpy())
        increment_version(self.parameter)
        return before / number, after / number

    def apply_in_forward(self) -> None:
        """Mask and scale what the forward pass is to see."""
        self.apply()
        if self.scale != 1:
            self.parameter.detach().mul_(self.scale)

    @property
    def only_in_forward(self) -> bool:
        return self.forward_only or self.double_copies or self.scale != 1

    @property
    def restored(self) -> bool:
        """Whether the weights get their own values back after the forward pass."""
        return self.double_copies or self.scale != 1

    def acts(self, active: bool) -> bool:
        """Whether the forward pass sees other weights now: when the policy acts; a scale as long as its mask holds."""
        return self.only_in_forward and (active or (self.scale != 1 and not self.forward_only))

    def enforced(self) -> _Entry | None:
        """What holds after the step too: all of it, or what a regularizer left beside a forward-only mask."""
        if not self.forward_only:
            return self
        if self.kept is None:
            return None
        entry = _Entry(self.parameter, kept=self.kept)
        entry.combine()
        return entry


class _Enforced:
    """Entries of one device and width, for one multi-tensor call."""

    def __init__(self, entries: list[_Entry]) -> None:
        self.entries = entries
        self.look()

    @classmethod
    def groups(cls, entries: Iterable[_Entry]) -> list[_Enforced]:
        groups: dict[tuple[torch.device, torch.dtype], list[_Entry]] = {}
        # Last first: their weights the optimizer has just left in the cache, and forward begins with the first.
        for entry in reversed(list(entries)):
            groups.setdefault((entry.factor.device, entry.factor.dtype), []).append(entry)
        return [cls(group) for group in groups.values()]

    def look(self) -> None:
        for entry in self.entries:
            entry.look()
        self.addresses = [entry.address for entry in self.entries]
        self.bits = [entry.bits for entry in self.entries]
        self.factors = [entry.factor for entry in self.entries]

    def apply(self) -> None:
        if self.addresses != [entry.parameter.data_ptr() for entry in self.entries]:
            self.look()  # somebody gave a parameter new memory
        torch._foreach_mul_(self.bits, self.factors)


class Masks(Mapping[str, Tensor]):
    """Parameter name -> boolean mask (True keeps), for the parameters that have one. Read-only from outside."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = dict(parameters)
        self._entries: dict[str, _Entry] = {}
        self._enforced: list[_Enforced] = []
        self._in_forward: list[_Entry] = []
        self._active: frozenset[str] = frozenset()
        self._stale = False
        self._copies: list[tuple[Parameter, Tensor]] = []

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        entry.mask = entry.mask.contiguous()
        return entry.mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def must_fit(self, masks: Mapping[str, object]) -> None:
        """Whether these are masks of the model's parameters.

        Raises:
            PluginError: a name that the model lacks, or a mask that does not fit its parameter.
        """
        for name, mask in masks.items():
            if name not in self._parameters:
                raise PluginError(f"the model has no parameter {name!r}{did_you_mean(name, self._parameters)}")
            shape = self._parameters[name].shape
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != shape:
                got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
                raise PluginError(f"the mask of {name!r} must be torch.bool {tuple(shape)}, got {got}")

    def must_be_values(self, values: Mapping[str, object]) -> None:
        """Whether these can take the place of the model's parameters.

        Raises:
            PluginError: a name that the model lacks, or values that do not fit its parameter.
        """
        for name, value in values.items():
            if name not in self._parameters:
                raise PluginError(f"the model has no parameter {name!r}{did_you_mean(name, self._parameters)}")
            shape = self._parameters[name].shape
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != shape:
                got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise PluginError(f"the values of {name!r} must be floating {tuple(shape)}, got {got}")

    # Changes

    def set(
        self, name: str, mask: Tensor, *, forward_only: bool = False, double_copies: bool = False, scale: float = 1.0
    ) -> tuple[float, float]:
        """A pruner's mask, in place of the one it had; applied at once unless only the forward pass sees it.

        Returns:
            The parameter's sparsity before and after.
        """
        entry = self._entry(name)
        counting = not (entry.only_in_forward or forward_only or double_copies or scale != 1)
        before = 0.0 if counting else self.sparsity(name)
        entry.pruned, entry.forward_only, entry.double_copies = _small(mask), forward_only, double_copies
        entry.scale = scale
        self._changed(entry)
        if counting:
            return entry.apply_and_count()
        if not (forward_only or double_copies):
            entry.apply()
        return before, self.sparsity(name)

    def keep(self, name: str) -> tuple[float, float]:
        """Enforce the parameter's mask after every step from now on; its sparsity before and after."""
        before, entry = self.sparsity(name), self._entries.get(name)
        if entry is not None:
            entry.forward_only, entry.double_copies, entry.scale = False, False, 1.0
            self._changed(entry)
            entry.apply()
        return before, self.sparsity(name)

    def intersect(self, name: str, mask: Tensor) -> tuple[float, float]:
        """A mask that stays besides any pruner's; the parameter's sparsity before and after."""
        before, entry = self.sparsity(name), self._entry(name)
        entry.kept = mask if entry.kept is None else entry.kept & mask
        self._changed(entry)
        self.zero(name, entry.kept)
        return before, self.sparsity(name)

    def drop(self, name: str) -> None:
        """Forget the pruner's mask; the weights stay as they are."""
        entry = self._entries.pop(name, None)
        self._stale = True
        if entry is not None and entry.kept is not None:
            entry.pruned, entry.forward_only, entry.double_copies, entry.scale = None, False, False, 1.0
            self._entries[name] = entry
            self._changed(entry)

    def set_weights(self, name: str, values: Tensor) -> None:
        """New values for a parameter; what is masked after the optimizer's step stays zero."""
        self._parameters[name].detach().copy_(values)
        entry = self._entries.get(name)
        enforced = None if entry is None else entry.enforced()
        if enforced is not None:
            enforced.apply()

    def zero(self, name: str, mask: Tensor) -> None:
        """Set weights to zero once, where the mask is False."""
        parameter = self._parameters[name]
        _bits(parameter).mul_(_factor(mask, parameter))

    # Upkeep

    def enforce(self) -> None:
        """The optimizer has stepped: zero what is pruned. No synchronization with the device."""
        if self._stale:
            self._sort()
        for group in self._enforced:
            group.apply()

    def activate(self, names: Iterable[str]) -> None:
        """The parameters whose policy acts in this epoch: only their forward-only masks are applied."""
        self._active = frozenset(names)
        self._stale = True
        for entry in self._entries.values():
            if entry.factor.device != entry.parameter.device:
                entry.combine()  # the model has moved

    def begin_forward(self) -> None:
        """Apply the masks that only the forward pass sees, setting the unmasked weights aside where asked."""
        if self._stale:
            self._sort()
        for entry in self._in_forward:
            if entry.restored:
                self._copies.append((entry.parameter, entry.parameter.detach().clone()))
            entry.apply_in_forward()

    def end_forward(self) -> None:
        """Put the unmasked weights back, if any were set aside."""
        for parameter, weights in self._copies:
            parameter.detach().copy_(weights)
        self._copies.clear()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """All masks applied to the weights, those that only the forward pass sees too; undone at the end."""
        self.end_forward()
        hidden = [entry for entry in self._entries.values() if entry.only_in_forward]
        copies = [(entry.parameter, entry.parameter.detach().clone()) for entry in hidden]
        for entry in self._entries.values():
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
        parameter, entry = self._parameters[name].detach() if values is None else values, self._entries.get(name)
        if entry is not None and entry.only_in_forward:
            parameter = parameter.masked_fill(~entry.mask, 0)
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
            for name, entry in self._entries.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace all masks, and apply those that are enforced. Names and shapes must fit (the scheduler checks)."""
        self._entries.clear()
        for name, saved in state.items():
            entry = self._entry(name)
            entry.pruned, entry.kept = _clone(saved["pruned"]), _clone(saved["kept"])
            entry.forward_only, entry.double_copies = saved["forward_only"], saved["double_copies"]
            entry.scale = saved["scale"]
            self._changed(entry)
        self._stale = True
        self.enforce()

    def snapshot(self, names: Iterable[str]) -> Callable[[], None]:
        """Remember masks and weights of these parameters; the function that is returned puts them back."""
        saved = {name: (self._parameters[name].detach().clone(), copy(self._entries.get(name))) for name in names}

        def restore() -> None:
            for name, (weights, entry) in saved.items():
                self._parameters[name].detach().copy_(weights)
                self._entries.pop(name, None)
                if entry is not None:
                    entry.combine()
                    self._entries[name] = entry
            self._stale = True

        return restore

    def _entry(self, name: str) -> _Entry:
        return self._entries.setdefault(name, _Entry(self._parameters[name]))

    def _changed(self, entry: _Entry) -> None:
        entry.combine()
        self._stale = True

    def _sort(self) -> None:
        self._enforced = _Enforced.groups(e for e in map(_Entry.enforced, self._entries.values()) if e is not None)
        self._in_forward = [e for n, e in self._entries.items() if e.acts(n in self._active)]
        self._stale = False


def count_nonzero(tensor: Tensor) -> int:
    """How many elements are not zero (negative zero is zero)."""
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64):
        values = tensor.detach().contiguous().numpy().reshape(-1)
        return int(np.count_nonzero(np.not_equal(values, 0, out=scratch(values.size, bool))))
    return int(torch.count_nonzero(tensor.detach()))


def _zero_rows(values: Any, keep: Any) -> tuple[int, int]:
    """Zero the rows [n, k] of which `keep` [n] is False; how many values are zero before and after.

    A chunk comes from memory once, is counted, and goes back.
    """
    step, before, after = max(_CHUNK // values.shape[1], 1), values.size, values.size
    for start in range(0, len(values), step):
        rows, kept = values[start : start + step], keep[start : start + step]
        there = np.not_equal(rows, 0, out=scratch(rows.size, bool).reshape(rows.shape))
        before -= int(np.count_nonzero(there))
        after -= int(np.count_nonzero(there[kept]))
        rows[~kept] = 0
    return before, after


def _clone(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.clone()


def _small(mask: Tensor) -> Tensor:
    """The mask in as little memory as it needs where it is one value along its last dimensions; else contiguous."""
    thin = _thin(mask)
    return mask.contiguous() if thin is mask else thin.clone().expand_as(mask)


def _thin(mask: Tensor) -> Tensor:
    """With one element along the last dimensions where a view makes it one value along them, and they are long."""
    inside = 0
    while inside < mask.dim() and (mask.stride(-1 - inside) == 0 or mask.shape[-1 - inside] == 1):
        inside += 1
    if math.prod(mask.shape[mask.dim() - inside :]) < _LONG or mask.device.type != "cpu":
        return mask
    for place in range(inside):
        mask = mask.narrow(-1 - place, 0, 1)
    return mask


def _factor(mask: Tensor, parameter: Parameter, memory: Tensor = _NO_FACTOR) -> Tensor:
    """0 and 1 as integers of the parameter's width and layout, in `memory` where that fits."""
    mask, dtype = _thin(mask), _BITS[parameter.element_size()]
    if (memory.shape, memory.dtype, memory.device) != (mask.shape, dtype, parameter.device):
        like = parameter if mask.shape == parameter.shape else mask
        memory = torch.empty_like(like, dtype=dtype, device=parameter.device, requires_grad=False)
    return memory.copy_(mask)


def _bits(parameter: Parameter) -> Tensor:
    return parameter.detach().view(_BITS[parameter.element_size()])
