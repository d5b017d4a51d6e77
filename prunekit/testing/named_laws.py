"""Laws of what schedules name beside components: curves, granularities and rankings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from prunekit.components.curves import CURVE
from prunekit.pruning.granularity import GRANULARITY, Groups, Tiles, Units
from prunekit.pruning.rankings import RANKING
from prunekit.testing.laws import NotApplicable, law, listed, must
from prunekit.testing.subject import Subject

ENDS = ((0.0, 0.5), (0.0, 0.9), (0.25, 0.75), (0.5, 0.99))
FRACTIONS = tuple(step / 20 for step in range(21))
VECTORS, MATRICES = ((), (1,), (5,), (8,)), ((4, 6), (7, 5), (16, 32), (128, 128))
SHAPES = (*VECTORS, *MATRICES, (6, 4, 3), (4, 6, 3, 3), (8, 8, 1, 1), (2, 4, 2, 2, 2))
_CLOSE = 1e-9
_Question = Callable[[Any], object]


@law(CURVE.name)
def curve_ends(subject: Subject) -> None:
    """A curve begins at the initial sparsity, or at the final one where all goes at once, and ends at the final one."""
    for initial, final in ENDS:
        first, last = (subject.thing()(initial, final, fraction) for fraction in (0.0, 1.0))
        begins = min(abs(first - initial), abs(first - final)) <= _CLOSE
        must(begins, f"{initial} or {final} at 0, between these two", f"{first}")
        must(abs(last - final) <= _CLOSE, f"{final} at 1, from {initial} on", f"{last}")


@law(CURVE.name)
def curve_range(subject: Subject) -> None:
    """What a curve gives is a sparsity: a number from 0 to 1."""
    for (initial, final), fraction in product(ENDS, FRACTIONS):
        value = subject.thing()(initial, final, fraction)
        is_sparsity = isinstance(value, int | float) and -_CLOSE <= value <= 1 + _CLOSE
        must(is_sparsity, f"a number from 0 to 1 at {fraction}, from {initial} to {final}", f"{value!r}")


@law(GRANULARITY.name)
def partition(subject: Subject) -> None:
    """Every element of a tensor is in exactly one group, of the size and in the order that its measures say."""
    accepted = list(_accepted(subject))
    if not accepted:
        raise NotApplicable(f"it accepts no tensor of a shape among {listed(SHAPES)}")
    for tensor, groups in accepted:
        shape, number = list(tensor.shape), groups.number
        index = groups.spread(torch.arange(number))
        must(list(index.shape) == shape, f"spread() in the shape {shape}", f"{list(index.shape)}")
        members = torch.bincount(index.reshape(-1), minlength=number).tolist()
        of_one_size = members == [groups.size] * number
        must(of_one_size, f"{number} groups of {groups.size} elements in {shape}", f"groups of {listed(members)}")
        sums = torch.zeros(number, dtype=torch.float64).index_add(0, index.reshape(-1), tensor.reshape(-1))
        must(bool(sums.allclose(groups.sum(tensor))), f"sum() of each group {_few(sums)}", _few(groups.sum(tensor)))


@law(GRANULARITY.name)
def refusal(subject: Subject) -> None:
    """A tensor without such groups is refused by a ValueError that begins with "has"."""
    for shape in SHAPES:
        try:
            subject.thing().groups(torch.ones(shape))
        except ValueError as error:
            begins = str(error).startswith("has ")
            must(begins, f"a message that begins with 'has' for {list(shape)}", f"{str(error)!r}")


@law(RANKING.name)
def finite_scores(subject: Subject) -> None:
    """A ranking gives one finite number for each group."""
    for weight, groups in _weights():
        scores = subject.thing()(weight, groups)
        what = f"a tensor of {groups.number} floats for {list(weight.shape)}"
        must(isinstance(scores, Tensor), what, type(scores).__name__)
        right = scores.is_floating_point() and list(scores.shape) == [groups.number]
        must(right, what, f"{scores.dtype} {list(scores.shape)}")
        must(bool(scores.isfinite().all()), f"finite scores of {_few(weight)}", _few(scores))


@law(RANKING.name)
def weight_untouched(subject: Subject) -> None:
    """A ranking leaves the weight as it is."""
    for weight, groups in _weights():
        before = weight.clone()
        subject.thing()(weight, groups)
        must(torch.equal(before, weight), f"the weight as it was: {_few(before)}", _few(weight))


@law(CURVE.name, GRANULARITY.name, RANKING.name)
def pure_function(subject: Subject) -> None:
    """Asked again, in another order, it gives the same; and no random number is drawn."""
    state, thing = torch.get_rng_state(), subject.thing()
    questions = list(_questions(subject))
    first = [ask(thing) for ask in questions]
    again = [ask(thing) for ask in reversed(questions)][::-1]
    changed = next((pair for pair in zip(first, again, strict=True) if pair[0] != pair[1]), None)
    must(changed is None, f"{changed and changed[0]} again", f"{changed and changed[1]}")
    must(torch.equal(state, torch.get_rng_state()), "torch's random numbers as they were", "some are drawn")


def _questions(subject: Subject) -> Iterator[_Question]:
    """What can be asked, each with a plain answer to compare."""
    if subject.kind == CURVE.name:
        for (initial, final), fraction in product(ENDS, FRACTIONS):
            yield partial(_sparsity, at=(initial, final, fraction))
    elif subject.kind == RANKING.name:
        for weight, groups in _weights():
            yield partial(_scores, weight=weight, groups=groups)
    else:
        for tensor, _ in _accepted(subject):
            yield partial(_members, tensor=tensor)


def _sparsity(curve: Any, at: tuple[float, float, float]) -> object:
    return curve(*at)


def _scores(ranking: Any, weight: Tensor, groups: Groups) -> object:
    return ranking(weight.clone(), groups).tolist()


def _members(granularity: Any, tensor: Tensor) -> object:
    groups = granularity.groups(tensor)
    return groups.spread(torch.arange(groups.number)).tolist()


def _accepted(subject: Subject) -> Iterator[tuple[Tensor, Groups]]:
    """The tensors that a granularity accepts, each element a number of its own, and their groups."""
    for shape in SHAPES:
        tensor = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
        try:
            yield tensor, subject.thing().groups(tensor)
        except ValueError:
            continue


def _weights() -> Iterator[tuple[Tensor, Groups]]:
    """Weights to rank, some of their groups equal and some all zero."""
    generator = torch.Generator().manual_seed(0)
    for shape, granularity in (((6, 4), Units(0)), ((6, 4), Tiles([2, 2])), ((4, 3, 2, 2), Units(1))):
        for dtype in (torch.float32, torch.float64):
            weight = torch.randn(shape, generator=generator).to(dtype)
            weight[:2] = 0
            weight[2] = weight[3]
            yield weight, granularity.groups(weight)


def _few(values: Tensor) -> str:
    return listed(f"{value:g}" for value in values.reshape(-1).tolist())
