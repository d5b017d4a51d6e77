"""Test classes for ranked pruners, to be subclassed: which groups go, how many, and what is refused.

class TestMyPruner(RankedOrderTests, RankedStructureTests):
    pruner = MyPruner
    gradual = MyPruner_AGP
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from structlog.testing import capture_logs
from torch.nn import Module

from prunekit.components.curves import CURVES
from prunekit.errors import ScheduleError
from prunekit.plugins.loading import Plugins
from prunekit.plugins.registry import Registry
from prunekit.progress import Window
from prunekit.schedule.schedule import Schedule
from prunekit.schedule.specs import ComponentSpec, PolicySpec
from prunekit.scheduler import CompressionScheduler
from prunekit.testing.check import check_component
from prunekit.testing.masks import groups_gone, weights_model
from prunekit.trace import Trace

SILENT = Trace(level="error")
ALONE = Plugins(Registry([]), ())
TEN, TWELVE, FORTY = (range(1, number + 1) for number in (10, 12, 40))


class RankedPrunerTests:
    """What every pruner keeps that is a `RankedPruner`, whatever its ranking.

    A subclass named `Test…` says which class is meant, and overrides what does not fit it.

    Attributes:
        pruner: the class that prunes at once.
        gradual: the one that prunes along a sparsity curve, if there is one.
        groups: the keys by which the groups of `model()` are meant.
        dim: the dimension of its parameters that these groups divide.
        lawful: keys for `check_component`, besides the sparsity; `lawful_gradually` for that of `gradual`.
    """

    pruner: ClassVar[type]
    gradual: ClassVar[type | None] = None
    groups: ClassVar[Mapping[str, Any]] = {"granularity": {"dim": 0}}
    dim: ClassVar[int] = 0
    lawful: ClassVar[Mapping[str, Any]] = {"weights": "conv?.weight", "group_type": "Filters"}
    lawful_gradually: ClassVar[Mapping[str, Any]] = {"weights": "*.weight", "granularity": {"dim": 0}}

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "pruner") and cls.gradual is None:  # not a class that only adds tests
            for name in dir(cls):
                if name.startswith("test_gradually"):
                    setattr(cls, name, None)  # pytest collects no attribute that is None

    # What a subclass may override

    def share(self, sparsity: float) -> dict[str, Any]:
        """The keys that make this fraction of all groups go."""
        return {"desired_sparsity": sparsity}

    def model(self, **scores: Sequence[float]) -> Module:
        """A model with a parameter `a.weight` for `a=[…]`, whose groups have these scores (0 or more) in this order."""
        return weights_model(**{name: [[value, value] for value in values] for name, values in scores.items()})

    def prepare(self, scheduler: CompressionScheduler) -> None:
        """Let the pruner know what it ranks by, before an epoch begins."""

    # What the tests are written with

    def scheduler(
        self,
        model: Module,
        epochs: Sequence[int] = range(5),
        args: Mapping[str, Any] | None = None,
        trace: Trace | None = SILENT,
        share: float | None = 0.5,
        **keys: Any,
    ) -> CompressionScheduler:
        """A schedule with the pruner alone, which prunes this share of all groups unless the keys say otherwise."""
        cls = self.gradual if "final_sparsity" in keys else self.pruner
        said = share is None or cls is self.gradual or keys.keys() & self.share(0).keys()
        amount = {} if said else self.share(share or 0)
        groups = {} if keys.keys() & {"granularity", "group_type"} else self.groups
        assert cls is not None
        section = {"weights": "a.weight", **amount, **groups, **keys}
        schedule = Schedule(
            [ComponentSpec("pruner", "p", cls, section)],
            [PolicySpec("pruner", "p", Window(epochs=epochs), args or {})],
        )
        return CompressionScheduler(schedule, model, trace=trace, plugins=ALONE)

    def begin(self, scheduler: CompressionScheduler, epoch: int = 0) -> dict[str, list[int]]:
        """The groups that are gone once an epoch has begun, by layer."""
        self.prepare(scheduler)
        scheduler.on_epoch_begin(epoch)
        return {name.removesuffix(".weight"): groups_gone(m, self.dim) for name, m in scheduler.masks.items()}

    def pruned(self, model: Module, **keys: Any) -> list[int]:
        """The groups of `a` that go in the first epoch."""
        return self.begin(self.scheduler(model, **keys)).get("a", [])

    def problems(self, model: Module, **keys: Any) -> list[tuple[str, str]]:
        """Place and message of all that a schedule with these keys is refused for."""
        with pytest.raises(ScheduleError) as error:
            self.scheduler(model, **keys)
        return [
            (problem.path.removeprefix("pruners.p").removeprefix("."), problem.message)
            for problem in error.value.problems
        ]

    # Which parameters

    def test_followers_lose_what_their_leader_loses(self) -> None:
        model = self.model(a=TEN, b=TEN[::-1])
        gone = self.begin(self.scheduler(model, weights=["b.weight", "a.weight"], group_dependency="Leader"))
        alone = self.begin(self.scheduler(self.model(a=TEN, b=TEN[::-1]), weights="b.weight"))
        assert gone == {"a": alone["b"], "b": alone["b"]}

    @pytest.mark.parametrize(
        ("weights", "place", "message"),
        [
            ([], "weights", "selects nothing"),
            (["c.weight"], "weights[0]", "'c.weight' selects nothing in the model"),
            ("c.weight", "weights", "'c.weight' selects nothing in the model"),
        ],
    )
    def test_weights_that_select_nothing_are_refused(self, weights: Any, place: str, message: str) -> None:
        ((where, said),) = self.problems(self.model(a=TEN), weights=weights)
        assert (where, message in said) == (place, True), said

    def test_a_follower_with_another_number_of_groups_is_refused(self) -> None:
        model: Any = self.model(a=[1, 2, 3, 4], b=[1, 2, 3])
        own, its = list(model.b.weight.shape), list(model.a.weight.shape)
        keys = {"weights": ["a.weight", "b.weight"], "group_dependency": "Leader"}
        leads = f"its leader 'a.weight' has {its} and 4"
        assert self.problems(model, **keys) == [("weights[1]", f"'b.weight' has shape {own} and 3 groups; {leads}")]

    def test_a_leader_by_another_word_and_keys_that_do_not_exist_are_refused(self) -> None:
        ((place, message),) = self.problems(self.model(a=TEN), group_dependency="leader")
        assert (place, message) == ("group_dependency", "must be 'Leader', got 'leader'")
        ((place, message),) = self.problems(self.model(a=TEN), sparcity=0.5)
        assert (place, "has no argument 'sparcity'" in message) == ("sparcity", True)

    def test_how_much_goes_must_be_said(self) -> None:
        (key,) = self.share(0)
        ((place, message),) = self.problems(self.model(a=TEN), share=None)
        assert (place, f"{self.pruner.__name__} needs {key!r}" in message) == ("", True), message

    # The laws of every component

    def test_it_keeps_the_laws(self) -> None:
        check_component(self.pruner, **self.lawful, **self.share(0.5))

    def test_gradually_it_keeps_the_laws(self) -> None:
        check_component(self.gradual, **self.lawful_gradually, initial_sparsity=0.25, final_sparsity=0.5)


class RankedCountTests(RankedPrunerTests):
    """Exactly so many groups go as the keys say, whichever they are."""

    @pytest.mark.parametrize(
        ("sparsity", "number"),
        [(0.1, 1), (0.19, 1), (0.2, 2), (0.25, 2), (0.4, 4), (0.5, 5), (0.7, 7), (0.75, 7), (0.99, 9), (1, 10)],
    )
    def test_the_sparsity_says_how_many_go_rounded_down(self, sparsity: float, number: int) -> None:
        assert len(self.pruned(self.model(a=TEN), **self.share(sparsity))) == number

    @pytest.mark.parametrize("sparsity", [0, 0.09])
    def test_less_than_one_group_leaves_the_tensor_alone_and_the_trace_says_so(self, sparsity: float) -> None:
        model: Any = self.model(a=TEN)
        with capture_logs() as lines:
            run = self.scheduler(model, trace=None, **self.share(sparsity))
            self.begin(run)
        assert (dict(run.masks), bool(model.a.weight.all())) == ({}, True)
        assert [line["parameters"] for line in lines if line["event"] == "nothing pruned"] == [["a.weight"]]

    @pytest.mark.parametrize(
        ("rounding", "size", "number"),
        [("floor", 1, 4), ("ceil", 1, 5), ("round", 1, 5), ("floor", 4, 4), ("ceil", 4, 8), ("round", 4, 4)],
    )
    def test_rounding_and_group_size_say_how_many_go(self, rounding: str, size: int, number: int) -> None:
        # 0.47 of 10 is 4.7, and 1.175 times four.
        keys = {"rounding_fn": rounding, "group_size": size}
        assert len(self.pruned(self.model(a=TEN), **keys, **self.share(0.47))) == number

    def test_a_sparsity_that_is_applied_again_changes_nothing(self) -> None:
        for values, sparsity in some_values():
            model: Any = self.model(a=values)
            run, seen = self.scheduler(model, **self.share(sparsity)), []
            for epoch in range(3):
                seen.append((self.begin(run, epoch), model.a.weight.tolist()))
            assert seen[1:] == seen[:1] * 2, (values, sparsity)
            assert len(seen[0][0].get("a", [])) == int(sparsity * len(values)), (values, sparsity)

    @pytest.mark.parametrize(
        ("curve", "counts"),
        [
            ("cubic", [2, 6, 8, 9, 9]),
            ("linear", [2, 4, 6, 7, 9]),
            ("exponential", [2, 5, 7, 8, 9]),
            ("one-shot", [9, 9, 9, 9, 9]),
            ([0, 1, 1], [2, 6, 9, 9, 9]),
        ],
    )
    def test_gradually_as_many_go_as_the_curve_says_and_none_comes_back(self, curve: Any, counts: list[int]) -> None:
        run = self.scheduler(self.model(a=TWELVE), initial_sparsity=0.2, final_sparsity=0.8, curve=curve)
        gone = [set(self.begin(run, epoch)["a"]) for epoch in range(5)]
        assert [len(now) for now in gone] == counts
        assert all(before <= after for before, after in pairwise(gone))

    @pytest.mark.parametrize("curve", CURVES)
    def test_gradually_none_comes_back_among_equal_groups_and_in_multiples(self, curve: str) -> None:
        for size, (values, final) in zip([1, 2, 3] * 7, some_values(), strict=True):
            keys: dict[str, Any] = {
                "initial_sparsity": final / 3,
                "final_sparsity": final,
                "curve": curve,
                "group_size": size,
            }
            run, before = self.scheduler(self.model(a=values), **keys), set[int]()
            for epoch in range(5):
                now = set(self.begin(run, epoch).get("a", []))
                assert before <= now, (values, keys)
                before = now
            assert len(before) == int(final * len(values) / size) * size, (values, keys)

    @pytest.mark.parametrize(
        ("sparsity", "message"), [(-0.1, "greater than or equal to 0"), (40, "less than or equal to 1")]
    )
    def test_a_sparsity_that_is_no_fraction_is_refused(self, sparsity: float, message: str) -> None:
        (key,) = self.share(sparsity)
        for place, said in self.problems(self.model(a=TEN), **self.share(sparsity)):
            assert (place.partition("[")[0], said) == (key, f"must be {message}, got {sparsity}")

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"group_size": 0}, "must be greater than or equal to 1, got 0"),
            ({"rounding_fn": "math.floor"}, "must be 'floor', 'ceil' or 'round', got 'math.floor'"),
            ({"seed": "one"}, "must be a valid integer, got 'one'"),
        ],
    )
    def test_numbers_that_make_no_sense_are_refused(self, keys: dict[str, Any], message: str) -> None:
        assert self.problems(self.model(a=TEN), **keys) == [(*keys, message)]

    @pytest.mark.parametrize(
        ("keys", "place", "message"),
        [
            (
                {"initial_sparsity": 0.5, "final_sparsity": 0.25},
                "final_sparsity",
                "must be above initial_sparsity 0.5, got 0.25",
            ),
            (
                {"initial_sparsity": 0.5, "final_sparsity": 0.5},
                "final_sparsity",
                "must be above initial_sparsity 0.5, got 0.5",
            ),
            ({"curve": [0, 0.5]}, "curve[1]", "must end with 1, where final_sparsity is reached, got 0.5"),
            ({"curve": "cubical"}, "curve", "no curve is registered as 'cubical'; did you mean 'cubic'?"),
        ],
    )
    def test_gradually_a_curve_that_leads_nowhere_is_refused(self, keys: Any, place: str, message: str) -> None:
        ((where, said),) = self.problems(self.model(a=TEN), **{"initial_sparsity": 0, "final_sparsity": 0.5, **keys})
        assert (where, message in said) == (place, True), said


class RankedOrderTests(RankedCountTests):
    """The groups with the lowest scores go, of equal ones the first.

    Attributes:
        noise: the key of the probability with which a score is disturbed.
    """

    noise: ClassVar[str] = "noise"

    def test_the_groups_with_the_lowest_scores_go_and_of_equal_ones_the_first(self) -> None:
        for values, sparsity in some_values():
            order = sorted(range(len(values)), key=lambda place: (values[place], place))
            lowest = sorted(order[: int(sparsity * len(values))])
            assert self.pruned(self.model(a=values), **self.share(sparsity)) == lowest, (values, sparsity)

    def test_every_parameter_is_ranked_by_itself_and_followers_by_their_leader(self) -> None:
        layers = {"a": [1, 2, 3, 4], "b": [4, 1, 3, 2]}
        names = ["b.weight", "a.weight"]
        assert self.begin(self.scheduler(self.model(**layers), weights=names)) == {"a": [0, 1], "b": [1, 3]}
        led = self.scheduler(self.model(**layers), weights=names, group_dependency="Leader")
        assert self.begin(led) == {"a": [1, 3], "b": [1, 3]}

    def test_weights_are_names_globs_or_patterns(self) -> None:
        layers = {"a": [1, 2], "b": [2, 1], "c": [1, 2]}
        chosen = self.begin(self.scheduler(self.model(**layers), weights=["a.weight", "re:b.*"]))
        assert chosen == {"a": [0], "b": [1]}
        every = self.begin(self.scheduler(self.model(**layers), weights="?.weight"))
        assert every == {"a": [0], "b": [1], "c": [0]}

    def test_noise_changes_the_ranking_and_the_seed_which_way(self) -> None:
        def ranked(noise: float, seed: int) -> list[int]:
            return self.pruned(self.model(a=FORTY), **{self.noise: noise}, seed=seed, **self.share(0.25))

        assert [ranked(0, seed) for seed in range(3)] == [list(range(10))] * 3
        noisy = [ranked(1, seed) for seed in range(3)]
        assert len({tuple(indices) for indices in [*noisy, list(range(10))]}) == 4
        assert [len(indices) for indices in noisy] == [10] * 3
        assert noisy == [ranked(1, seed) for seed in range(3)]

    def test_a_noise_that_is_no_probability_is_refused(self) -> None:
        keys: dict[str, Any] = {self.noise: 2}
        assert self.problems(self.model(a=TEN), **keys) == [(self.noise, "must be less than or equal to 1, got 2")]

    def test_groups_in_another_order_lose_the_same_ones(self) -> None:
        for seed in range(10):
            order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()
            for count in range(2, 6):
                gone = self.pruned(self.model(a=[place + 1 for place in order]), **self.share((count + 0.5) / 6))
                assert sorted(order[place] for place in gone) == list(range(count)), order

    def test_gradually_the_lowest_go_first(self) -> None:
        run = self.scheduler(self.model(a=TWELVE), initial_sparsity=0.2, final_sparsity=0.8)
        assert [self.begin(run, epoch)["a"] for epoch in range(5)] == [list(range(n)) for n in (2, 6, 8, 9, 9)]


def some_values(number: int = 21) -> Iterator[tuple[list[float], float]]:
    """Scores of 1 to 12 groups, many of them equal, and a sparsity: made up, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    for index in range(number):
        size = 1 + index % 12
        values = torch.randint(1, 7, (size,), generator=generator).double().tolist()
        yield values, 0.95 * float(torch.rand(1, generator=generator))
