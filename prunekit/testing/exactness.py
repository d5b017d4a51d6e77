"""Whether exactly as many units are pruned as the arguments of a pruner ask for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit.components.arguments import arguments_of
from prunekit.components.curves import OverTime, is_change
from prunekit.components.types import PerParameter, Sparsity
from prunekit.errors import ArgumentError
from prunekit.testing.laws import Broken, NotApplicable, listed
from prunekit.testing.runs import Run
from prunekit.testing.subject import Subject

_SPARSITIES: list[Any] = [Sparsity, OverTime[Sparsity], PerParameter[Sparsity], PerParameter[OverTime[Sparsity]]]  # type: ignore[misc]
"""The types of arguments that say what sparsity is asked for."""


def asked_sparsity(run: Run) -> dict[str, float]:
    """Parameter -> the sparsity that the arguments ask for at the end.

    Raises:
        NotApplicable: no argument says so, or several do.
    """
    _, value = _asking(run.subject)
    settings = run.policy.settings
    each = isinstance(value, Mapping) and not is_change(value)
    return {name: _at_the_end(settings[name] if each else value) for name in run.policy.parameters}


def _at_the_end(value: Any) -> float:
    return float(value["to"] if is_change(value) else value)


def asking_nothing(subject: Subject) -> Subject:
    """The same, asked for a sparsity of 0.

    Raises:
        NotApplicable: no argument says what it asks for, several do, or 0 is refused.
    """
    name, value = _asking(subject)
    zero = dict.fromkeys(value, 0.0) if isinstance(value, Mapping) and not is_change(value) else 0.0
    asked = replace(subject, arguments={**subject.arguments, name: zero}, remembered={})
    try:
        asked.make()
    except ArgumentError as error:
        raise NotApplicable(f"it refuses {name} 0: {error}") from error
    return asked


def _asking(subject: Subject) -> tuple[str, Any]:
    """The argument that says what sparsity is asked for, and its value."""
    arguments = {
        argument.name: subject.arguments.get(argument.name, argument.default)
        for argument in arguments_of(subject.cls, "pruner")
        if argument.annotation in _SPARSITIES and not argument.name.startswith("initial")
    }
    if len(arguments) != 1:
        several = f"several arguments say what it asks for: {listed(arguments)}"
        raise NotApplicable(several if arguments else "no argument of type Sparsity says what it asks for")
    return next(iter(arguments.items()))


def must_be_exact(run: Run, asked: Mapping[str, float], where: str) -> None:
    """Whether floor(s · n) units of each parameter are pruned, or of all of them together."""
    wrong = list(_off_target(run.scheduler.masks, run.policy.parameters, asked))
    if wrong and not _exact_together(run, asked):
        raise Broken(where + listed(expected for expected, _ in wrong), listed(got for _, got in wrong))


def _off_target(
    masks: Mapping[str, Tensor], parameters: Mapping[str, Parameter], targets: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    """Expected and got, for each parameter of which another number of units is pruned."""
    for name, weight in parameters.items():
        mask = masks[name] if name in masks else torch.ones_like(weight, dtype=torch.bool)
        n, pruned, asked = weight.numel(), int((~mask).sum()), targets[name]
        if not any(gone == math.floor(asked * units) for units, gone in _units(mask)):
            yield f"{name} {math.floor(asked * n)} of {n} pruned ({asked:g} asked)", f"{name} {pruned} of {n}"


def _units(mask: Tensor) -> Iterator[tuple[int, int]]:
    """For each structure that a mask may have: how many units there are, and how many of them are pruned whole.

    A structure is a set of dimensions along which the mask does not change.
    """
    dims = range(mask.dim())
    for inside in chain.from_iterable(combinations(dims, size) for size in range(mask.dim())):
        kept = mask.amax(inside, keepdim=True) if inside and mask.numel() else mask
        if torch.equal(kept.expand_as(mask), mask):
            yield kept.numel(), int((~kept).sum())


def _exact_together(run: Run, asked: Mapping[str, float]) -> bool:
    """Whether one budget over all parameters is kept exactly."""
    parameters, masks = run.policy.parameters, run.scheduler.masks
    pruned = sum(int((~masks[name]).sum()) for name in parameters if name in masks)
    budgets = {math.floor(sparsity * sum(p.numel() for p in parameters.values())) for sparsity in asked.values()}
    return budgets == {pruned}
