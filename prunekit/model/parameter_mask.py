"""One parameter's mask, and how its zeros get into the weights: exactly, and in as few bytes moved as possible."""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from prunekit.model.scratch import scratch

_NO_FACTOR = torch.empty(0)
_CHUNK = 2**16
"""How many weights are counted and zeroed at once: as many as stay in a core's cache."""
_LONG = 16
"""From how many weights on a CPU multiplies them by one factor sooner than each by its own."""
_PROBES = 4
"""In how many parts of a parameter one masked weight is looked at, to see whether somebody has written to them."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer that is as wide as a weight, by the bytes of the weight."""


@dataclass(eq=False)
class ParameterMask:
    """The pruner's mask of a parameter, the one a regularizer left for good, and both together as a factor.

    A mask is applied by multiplying the weight's bits, taken as an integer, by 0 or 1. A product of floats would not
    do: -1.0 * 0 is -0.0, and inf * 0 is NaN. An integer times 1 is every bit as it was, times 0 it is +0.0.
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
    version: int = field(init=False, default=-1)
    _probes: list[tuple[memoryview, int]] | None = field(init=False, default=None)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has memory of its own to look at, and nobody knows what was written there.
        return {**vars(self), "version": -1, "_probes": None}

    def changed(self, **values: Any) -> ParameterMask:
        """The same with other values, and with all the memory that it needs. It shares this one's factor: `fill` it."""
        other = copy(self)
        for name, value in values.items():
            setattr(other, name, value)
        other.combine()
        return other

    def combine(self) -> None:
        """Both masks in one, and memory for the factor; the factor itself is still the former."""
        device = self.parameter.device
        parts = [part.to(device) for part in (self.pruned, self.kept) if part is not None]
        self.mask = parts[0] if len(parts) == 1 else parts[0] & parts[1]
        self.factor = _memory(self.mask, self.parameter, self.factor)

    def fill(self) -> None:
        """From now on the factor is this mask."""
        self.factor.copy_(_thin(self.mask))
        self.look()

    def look(self) -> None:
        """Take the parameter's memory, which it shares with this view, as integers."""
        # `model.half()` and `model.to(device)` leave the parameter what it is, and the factor as wide as it was.
        if (self.factor.dtype, self.factor.device) != (_BITS[self.parameter.element_size()], self.parameter.device):
            self.combine()
            self.factor.copy_(_thin(self.mask))
        self.bits = _bits(self.parameter)
        self.address, self.version, self._probes = self.parameter.data_ptr(), -1, None

    @property
    def probes(self) -> list[tuple[memoryview, int]]:
        """A few places in the parameter's memory that hold masked weights; none on another device than a CPU."""
        if self._probes is None:
            on_cpu = type(self.bits) is Tensor and self.bits.device.type == "cpu"
            memory = _memory_of(self.bits) if on_cpu else memoryview(b"")
            self._probes = [(memory, place) for place in _masked_places(self.mask, self.bits)] if on_cpu else []
        return self._probes

    @property
    def is_intact(self) -> bool:
        """Whether what is masked is still zero, as far as `EnforcedMasks.is_intact` can tell."""
        return self.address == self.parameter.data_ptr() and EnforcedMasks([self]).is_intact

    def apply(self) -> None:
        """Zero what is masked."""
        # Moving a model, or assigning to `.data`, gives a parameter new memory, and this view would still zero the old.
        if self.address != self.parameter.data_ptr():
            self.look()
        self.bits.mul_(self.factor)

    def apply_and_count(self) -> tuple[float, float]:
        """Zero what is masked, and say the sparsity before and after: of whole rows on a CPU in one go."""
        weights, thin = self.parameter.detach(), _thin(self.mask)
        number = max(weights.numel(), 1)
        # numpy has no bfloat16, rows must lie one behind the other, and -1 says nothing of an empty array.
        seen_by_numpy = weights.dtype in (torch.float32, torch.float64) and weights.is_contiguous() and weights.numel()
        # Whole rows are counted, zeroed and counted on one way through memory; all else takes three.
        if thin is self.mask or not seen_by_numpy:
            before = count_nonzero(weights)
            self.apply()
            after = count_nonzero(weights)
            return (weights.numel() - before) / number, (weights.numel() - after) / number
        rows = weights.numpy().reshape(thin.numel(), -1)
        before, after = _zero_rows(rows, thin.reshape(-1).numpy())
        increment_version(self.parameter)  # numpy wrote behind autograd's back
        return before / number, after / number

    def apply_in_forward(self) -> None:
        """Mask and scale what the forward pass is to see."""
        self.apply()
        if self.scale != 1:
            self.parameter.detach().mul_(self.scale)

    @property
    def only_in_forward(self) -> bool:
        """Whether the forward pass sees other weights than the optimizer."""
        return self.forward_only or self.double_copies or self.scale != 1

    @property
    def restored(self) -> bool:
        """Whether the weights get their own values back after the forward pass."""
        return self.double_copies or self.scale != 1

    def acts(self, active: bool) -> bool:
        """Whether the forward pass sees other weights now: when the policy acts; a scale as long as its mask holds."""
        return self.only_in_forward and (active or (self.scale != 1 and not self.forward_only))

    def enforced(self) -> ParameterMask | None:
        """What holds after the step too: all of it, or what a regularizer left beside a forward-only mask."""
        if not self.forward_only:
            return self
        if self.kept is None:
            return None
        # An entry with a factor of its own: this one's holds the pruner's mask too.
        entry = ParameterMask(self.parameter, kept=self.kept)
        entry.combine()
        entry.fill()
        return entry


class EnforcedMasks:
    """Masks of one device and width, for one multi-tensor call."""

    def __init__(self, entries: list[ParameterMask]) -> None:
        self.entries = entries
        self.parameters = [entry.parameter for entry in entries]
        self.addresses = [entry.address for entry in entries]
        self.bits = [entry.bits for entry in entries]
        self.factors = [entry.factor for entry in entries]

    @classmethod
    def groups(cls, entries: Iterable[ParameterMask]) -> list[EnforcedMasks]:
        """The masks sorted into as few calls as they need."""
        groups: dict[tuple[torch.device, torch.dtype], list[ParameterMask]] = {}
        # Last first: their weights the optimizer has just left in the cache, and forward begins with the first.
        for entry in reversed(list(entries)):
            if entry.address != entry.parameter.data_ptr():
                entry.look()
            groups.setdefault((entry.factor.device, entry.factor.dtype), []).append(entry)
        return [cls(group) for group in groups.values()]

    @property
    def moved(self) -> bool:
        """Whether somebody has given a parameter new memory: then it must be sorted in anew."""
        return self.addresses != [parameter.data_ptr() for parameter in self.parameters]

    @property
    def is_intact(self) -> bool:
        """Whether all that is masked is still zero, as far as can be told without looking at all of it.

        torch counts writes in place, but none through `.data` or numpy: those show in a few masked weights, which are
        looked at where that costs no synchronization with a device.
        """
        if [parameter._version for parameter in self.parameters] != [entry.version for entry in self.entries]:
            return False
        # Read out of plain memory: a tensor takes a hundred times as long to say what one of its elements is.
        return not any(map(getitem, *self._probes))

    @cached_property
    def _probes(self) -> tuple[list[memoryview], list[int]]:
        probes = [probe for entry in self.entries for probe in entry.probes]
        return [memory for memory, _ in probes], [place for _, place in probes]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_probes"}

    def apply(self) -> None:
        """Zero what is masked."""
        torch._foreach_mul_(self.bits, self.factors)
        for entry, parameter in zip(self.entries, self.parameters, strict=True):
            entry.version = parameter._version


class Zeros:
    """Weights that are to be zero once; memory is taken when this is made, and `apply` needs no more."""

    def __init__(self, parameter: Parameter, mask: Tensor) -> None:
        self._parameter = parameter
        self._factor = _memory(mask, parameter).copy_(_thin(mask))

    def apply(self) -> None:
        """Set them to zero."""
        _bits(self._parameter).mul_(self._factor)


def count_nonzero(tensor: Tensor) -> int:
    """How many elements are not zero (negative zero is zero)."""
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64):
        # numpy compares into memory that is there and counts bytes: several times as fast as torch.count_nonzero.
        values = tensor.detach().contiguous().numpy().reshape(-1)
        return int(np.count_nonzero(np.not_equal(values, 0, out=scratch(values.size, bool))))
    return int(torch.count_nonzero(tensor.detach()))


def small(mask: Tensor) -> Tensor:
    """The mask in as little memory as it needs where it is one value along its last dimensions; else contiguous."""
    thin = _thin(mask)
    # Cloned, since the pruner may go on to write to the few values that its mask is a view of.
    return mask.contiguous() if thin is mask else thin.clone().expand_as(mask)


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


def _thin(mask: Tensor) -> Tensor:
    """With one element along the last dimensions where a view makes it one value along them, and they are long.

    A pruner of whole filters gives such masks: a factor for each filter is a thousandth of one for each weight.
    """
    inside = 0
    # A stride of 0 is what `expand` leaves: all elements along that dimension are one place in memory.
    while inside < mask.dim() and (mask.stride(-1 - inside) == 0 or mask.shape[-1 - inside] == 1):
        inside += 1
    if math.prod(mask.shape[mask.dim() - inside :]) < _LONG or mask.device.type != "cpu":
        return mask
    for place in range(inside):
        mask = mask.narrow(-1 - place, 0, 1)
    return mask


def _memory(mask: Tensor, parameter: Parameter, memory: Tensor = _NO_FACTOR) -> Tensor:
    """Memory for 0 and 1 as integers of the parameter's width and layout: `memory` where that fits.

    It is used again because on a CPU fresh pages cost more than what is written to them.
    """
    thin, dtype = _thin(mask), _BITS[parameter.element_size()]
    if (memory.shape, memory.dtype, memory.device) == (thin.shape, dtype, parameter.device):
        return memory
    # Laid out as the parameter is (channels-last, say), so that both are walked through in the order of memory.
    like = parameter if thin.shape == parameter.shape else thin
    return torch.empty_like(like, dtype=dtype, device=parameter.device, requires_grad=False)


def _bits(parameter: Parameter) -> Tensor:
    """The parameter's memory as integers of its width."""
    return parameter.detach().view(_BITS[parameter.element_size()])


def _memory_of(bits: Tensor) -> memoryview:
    """The memory behind a tensor on a CPU from its first element on, whatever its strides."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(bits.shape, bits.stride(), strict=True))
    values: Any = bits.as_strided((length if bits.numel() else 0,), (1,)).numpy()
    return memoryview(values)


def _masked_places(mask: Tensor, bits: Tensor) -> list[int]:
    """Where in a parameter's memory masked weights lie: the first in each of a few parts of the mask."""
    thin = _thin(mask)
    keep, places = thin.numpy().reshape(-1), []
    for part in range(_PROBES):
        start, end = part * keep.size // _PROBES, (part + 1) * keep.size // _PROBES
        # numpy stops at the first False.
        first = start + int(keep[start:end].argmin()) if start < end else keep.size
        if first < keep.size and not keep[first]:
            index = np.unravel_index(first, thin.shape)
            places.append(sum(int(i) * stride for i, stride in zip(index, bits.stride(), strict=True)))
    return places
