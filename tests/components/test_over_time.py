"""Arguments that change over time: how they are written, what is wrong with them, and what they do in a window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, batches, equal
from torch import Tensor, nn
from torch.nn import Parameter

from prunekit import ComponentSpec, CompressionScheduler, PolicySpec, Schedule, ScheduleError, Window
from prunekit.components import Context, OverTime, PerParameter, Positive, Selectors, Sparsity
from prunekit.components.arguments import json_schema, type_name
from prunekit.components.curves import CURVES, changes_in, value_at, varies


def change(start: float, end: float, curve: Any = "linear") -> dict[str, Any]:
    return {"curve": curve, "from": start, "to": end}


# Values


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        ("linear", [0.4, 0.3, 0.2, 0.1, 0.0]),
        ("cosine", [0.4, 0.2 + 0.2 * math.sqrt(0.5), 0.2, 0.2 - 0.2 * math.sqrt(0.5), 0.0]),
        ("cubic", [0.4, 0.4 * 27 / 64, 0.05, 0.4 / 64, 0.0]),
        ("one-shot", [0.0] * 5),
        ([0, 1, 1], [0.4, 0.2, 0.0, 0.0, 0.0]),
    ],
)
def test_a_value_goes_along_its_curve(curve: Any, values: list[float]) -> None:
    found = [value_at(change(0.4, 0.0, curve), quarters / 4) for quarters in range(5)]
    assert found == pytest.approx(values, abs=1e-12)
    assert found[-1] == 0.0


def test_a_number_stays_what_it_is() -> None:
    assert [value_at(0.3, fraction) for fraction in (0, 0.5, 1)] == [0.3] * 3


@pytest.mark.parametrize("start", [1e-10, 0.3, 2e6])
def test_ends_are_exact_however_small_or_large(start: float) -> None:
    for curve in ("linear", "cosine", "cubic"):
        assert [value_at(change(start, 2 * start, curve), fraction) for fraction in (0, 1)] == [start, 2 * start]
    assert value_at(change(start, 2 * start, "one-shot"), 0) == 2 * start


def test_a_context_asks_at_its_moment() -> None:
    window = Window(starting_step=10, ending_step=15)
    values = []
    for step in window.active:
        progress = window.opening._replace(step=step)
        values.append(Context(MLP(), {}, progress, window, {}, {}).now(change(1.0, 0.0)))
    assert values == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_curves_are_found_wherever_they_stand() -> None:
    value = {"fc1.weight": [change(1, 2), "Rows"], "fc2.weight": 0.5}
    assert list(changes_in(value)) == [(("fc1.weight", 0), change(1, 2))]
    assert [varies(each) for each in (OverTime[Sparsity], PerParameter[tuple[OverTime[Sparsity], str]], Sparsity)] == [
        True,
        True,
        False,
    ]


# The type


@dataclass(kw_only=True)
class Changing:
    """Prunes nothing."""

    weights: Selectors
    alpha: OverTime[Positive] = 0.5
    per: PerParameter[tuple[OverTime[Sparsity], str]] | None = None

    def compute_masks(self, parameters: Mapping[str, Parameter], context: Context) -> Mapping[str, Tensor]:
        return {}


def problems(**keys: Any) -> list[str]:
    spec = ComponentSpec("pruner", "c", Changing, {"weights": "fc1.weight", **keys})
    try:
        CompressionScheduler(Schedule([spec], [PolicySpec("pruner", "c", Window(0, 3))]), MLP(), trace=SILENT)
    except ScheduleError as error:
        return [f"{problem.path.removeprefix('pruners.c.')}: {problem.message}" for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "alpha",
    [0.5, change(0.3, 0.1), change(0.1, 0.3), change(2, 2), change(1, 2, [0, 0.5, 1]), change(2, 1, CURVES["cubic"])],
)
def test_a_number_or_a_curve_between_two_is_accepted(alpha: Any) -> None:
    assert problems(alpha=alpha) == []


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (0, "alpha: must be greater than 0, got 0"),
        ("0.5", "alpha: must be a valid number, got '0.5'"),
        (change(0.3, 0), "alpha.to: must be greater than 0, got 0"),
        (change(-1, 2), "alpha.from: must be greater than 0, got -1"),
        (change("1", 2), "alpha.from: must be a valid number, got '1'"),
        ({"curve": "linear", "from": 1}, "alpha: must have a key 'to', got {'curve': 'linear', 'from': 1}"),
        ({"from": 1, "to": 2}, "alpha: must have a key 'curve', got {'from': 1, 'to': 2}"),
        ({**change(1, 2), "by": 3}, "alpha.by: extra inputs are not permitted, got 3"),
        (change(1, 2, 5), "alpha.curve: must be the name of a curve or a list, got 5"),
        (
            change(0.5, 0.1, "linaer"),
            "alpha.curve: no curve is registered as 'linaer'; did you mean 'linear'?",
        ),
        (change(1, 2, [0, 0.5]), "alpha.curve[1]: must end with 1, where to is reached, got 0.5"),
        (
            change(0.5, 1, "exponential"),
            "alpha.curve: exponential never prunes all: a fraction of what is left always leaves something",
        ),
    ],
)
def test_what_is_wrong_is_said_at_its_key(alpha: Any, message: str) -> None:
    assert [problem.partition(" (prunekit")[0] for problem in problems(alpha=alpha)] == [message]


def test_a_curve_that_can_not_lead_from_one_end_to_the_other_is_refused() -> None:
    (problem,) = problems(alpha=change(3, 2, "exponential"))
    assert problem.startswith("alpha.curve: curve 'exponential' gives (")
    assert problem.endswith("when 0.25 of the window has passed, going from 3 to 2")

    def overshoots(initial: float, final: float, fraction: float) -> float:
        return final + 1 if fraction == 0.5 else initial + (final - initial) * fraction

    (problem,) = problems(alpha=change(1, 2, overshoots))
    assert problem.endswith("gives 3 when 0.5 of the window has passed, which is not between 1 and 2")


def test_what_is_wrong_is_said_within_a_mapping_too() -> None:
    per = {"fc2.weight": [change(0.5, 1.5), "Rows"], "fc1.bias": [change(0.5, 1, [0, 2, 1]), "Rows"]}
    assert problems(per=per) == [
        "per.fc2.weight[0].to: must be less than or equal to 1, got 1.5",
        "per.fc1.bias[0].curve[1]: must be less than or equal to 1, got 2",
    ]


def test_an_error_has_line_and_column() -> None:
    text = """\
version: 1
regularizers:
  r:
    class: L1Regularizer
    reg_regims:
      fc1.weight: {curve: linear, from: -1, to: 0}
policies: []
"""
    with pytest.raises(ScheduleError, match=r"6:41: regularizers\.r\.reg_regims\.fc1\.weight\.from: must be greater"):
        CompressionScheduler(Schedule.from_text(text), MLP())


def test_it_is_in_the_schema_and_has_a_name() -> None:
    schema = json_schema(Changing, "pruner")["properties"]["alpha"]
    number, changing = schema["oneOf"]
    assert number == {"exclusiveMinimum": 0, "type": "number"}
    assert changing["required"] == ["curve", "from", "to"]
    assert changing["properties"]["from"] == {"exclusiveMinimum": 0, "title": "From", "type": "number"}
    assert changing["additionalProperties"] is False
    assert type_name(OverTime[Positive]) == "float | curve"
    assert type_name(PerParameter[tuple[OverTime[Sparsity], str]]) == "dict[str, tuple[float | curve, str]]"


# What they do in a window: at its middle, in epochs and in steps


class Middle:
    """Five epochs of one step each, or one epoch of five steps, of which the third is the middle of the window."""

    def __init__(self, kind: str, class_: str, unit: str, keys: dict[str, Any]) -> None:
        window = {f"starting_{unit}": 0, f"ending_{unit}": 5}
        policy = {kind: {"instance_name": "c"}, **window}
        data = {"version": 1, f"{kind}s": {"c": {"class": class_, **keys}}, "policies": [policy]}
        self.net = MLP()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.0)
        self.scheduler = CompressionScheduler.from_dict(data, self.net, self.optimizer, trace=SILENT)
        self.seen: list[dict[str, Tensor]] = []
        per_epoch = 1 if unit == "epoch" else 5
        for number in range(5):
            self.minibatch(*divmod(number, per_epoch), per_epoch)

    def minibatch(self, epoch: int, minibatch: int, per_epoch: int) -> None:
        if minibatch == 0:
            self.scheduler.on_epoch_begin(epoch)
        self.scheduler.on_minibatch_begin(epoch, minibatch, per_epoch)
        x, y = batches(1)[0]
        loss = nn.functional.cross_entropy(self.net(x), y)
        total = self.scheduler.before_backward_pass(epoch, minibatch, per_epoch, loss)
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.on_minibatch_end(epoch, minibatch, per_epoch)
        masks = {name: mask.clone() for name, mask in self.scheduler.masks.items()}
        weights = {f"{name} itself": weight.detach().clone() for name, weight in self.net.named_parameters()}
        self.seen.append({"term": (total - loss).detach(), **masks, **weights})
        if minibatch == per_epoch - 1:
            self.scheduler.on_epoch_end(epoch)


UNITS = {"granularity": {"dim": 0}, "weights": ["fc1.weight"]}
ROWS = {"group_type": "Rows", "weights": ["fc1.weight"]}
KEYS: dict[str, tuple[str, str, Any]] = {
    # what has the key: its kind, its class, and its keys with a value
    "L1": ("regularizer", "L1Regularizer", lambda v: {"reg_regims": {"fc1.weight": v}}),
    "L1 thresholds": (
        "regularizer",
        "L1Regularizer",
        lambda v: {"reg_regims": {"fc1.weight": v}, "threshold_criteria": "Max"},
    ),
    "group lasso": ("regularizer", "GroupLassoRegularizer", lambda v: {"reg_regims": {"fc1.weight": [v, "Rows"]}}),
    "group lasso thresholds": (
        "regularizer",
        "GroupLassoRegularizer",
        lambda v: {"reg_regims": {"fc1.weight": [v, "Rows"]}, "threshold_criteria": "Mean_Abs"},
    ),
    "level": ("pruner", "SparsityLevelParameterPruner", lambda v: {"levels": {"fc1.weight": v}}),
    "global": ("pruner", "GlobalMagnitudePruner", lambda v: {"weights": ["fc?.weight"], "desired_sparsity": v}),
    "L1 ranked": ("pruner", "L1RankedStructureParameterPruner", lambda v: {**ROWS, "desired_sparsity": v}),
    "L2 ranked": ("pruner", "L2RankedStructureParameterPruner", lambda v: {**ROWS, "desired_sparsity": v}),
    "ranked": ("pruner", "RankedStructurePruner", lambda v: {**ROWS, "ranking": "l1", "desired_sparsity": v}),
    "random": ("pruner", "RandomRankedFilterPruner", lambda v: {**UNITS, "desired_sparsity": v}),
    "Bernoulli": ("pruner", "BernoulliFilterPruner", lambda v: {**UNITS, "desired_sparsity": v}),
    "gradients": ("pruner", "GradientRankedFilterPruner", lambda v: {**UNITS, "desired_sparsity": v}),
}
"""Components that remember nothing, so that only the value at the middle counts."""


LEAVES_TRACES = {"L1 thresholds": "itself", "group lasso thresholds": "itself", "Bernoulli": "fc1.weight"}
"""What zeroes weights: of these only that is compared in which earlier moments leave none."""


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("name", KEYS)
def test_at_the_middle_of_its_window_a_value_is_that_of_its_curve(name: str, unit: str) -> None:
    """From a first value to a last one: what happens in the middle is what their mean does all the time."""
    kind, class_, keys = KEYS[name]
    ends = {"group lasso thresholds": (0.2, 0.23, 0.26), "Bernoulli": (0.1, 0.5, 0.9)}
    first, mean, last = ends.get(name, (0.125, 0.375, 0.625))

    def middle(value: Any) -> dict[str, Tensor]:
        seen = Middle(kind, class_, unit, keys(value)).seen[2]
        if name == "random":  # by lot, and those that are pruned already take part in it
            return {"kept": seen["fc1.weight"].sum()}
        return {key: tensor for key, tensor in seen.items() if key.endswith(LEAVES_TRACES.get(name, ""))}

    changing, constant = middle(change(first, last)), [middle(value) for value in (first, mean, last)]
    assert [equal(changing, each) for each in constant] == [False, True, False]
    assert equal(middle(change(first, last, "one-shot")), constant[-1])


WIRED = {"weights": ["fc?.weight"], "desired_sparsity": 0.5}


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_set_swaps_as_many_as_its_curve_says(unit: str) -> None:
    def masks(zeta: Any) -> list[dict[str, Tensor]]:
        return Middle("pruner", "SETPruner", unit, {**WIRED, "zeta": zeta}).seen

    assert equal(masks(change(0.4, 0.4))[2], masks(0.4)[2])
    assert not equal(masks(change(0.4, 0.1))[2], masks(0.4)[2])
    stops = masks(change(0.4, 0.0, [0, 1, 1]))
    assert equal(stops[2], stops[4]), "from the middle on nothing is swapped"
    assert not equal(stops[0], stops[2])


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_rigl_swaps_as_many_as_its_curve_says(unit: str) -> None:
    """Its own decay is a cosine from α to 0; a curve takes the place of that."""

    def masks(alpha: Any, **keys: Any) -> list[dict[str, Tensor]]:
        return Middle("pruner", "RigLPruner", unit, {**WIRED, "delta_t": 1, "alpha": alpha, **keys}).seen

    own, changed = masks(0.6, t_end=4), masks(change(0.6, 0.0, "cosine"))
    assert [equal(*pair) for pair in zip(own, changed, strict=True)] == [True] * 5
    assert not equal(masks(change(0.6, 0.1))[2], masks(change(0.6, 0.6))[2])


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_group_variance_is_as_strong_as_its_curve_says(unit: str) -> None:
    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    net = Image()
    window = Window(**{f"starting_{unit}": 0, f"ending_{unit}": 3})
    spec = ComponentSpec(
        "regularizer", "v", "GroupVarianceRegularizer", {"reg_regims": {"conv.weight": [change(1.0, 3.0), "Channels"]}}
    )
    schedule = Schedule([spec], [PolicySpec("regularizer", "v", window)])
    scheduler = CompressionScheduler(schedule, net, trace=SILENT)
    terms = []
    for number in range(3):
        epoch, minibatch = (number, 0) if unit == "epoch" else (0, number)
        if minibatch == 0:
            scheduler.on_epoch_begin(epoch)
        scheduler.on_minibatch_begin(epoch, minibatch, 3)
        terms.append(float(scheduler.total_loss(torch.zeros(())).detach()))
        scheduler.on_minibatch_end(epoch, minibatch, 3)
    assert [term / terms[0] for term in terms] == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_agp_is_the_level_pruner_with_a_curve(unit: str) -> None:
    agp = {"initial_sparsity": 0.1, "final_sparsity": 0.8, "weights": ["fc1.weight"]}
    level = {"levels": {"fc1.weight": change(0.1, 0.8, "cubic")}}
    one = Middle("pruner", "AutomatedGradualPruner", unit, agp).seen
    other = Middle("pruner", "SparsityLevelParameterPruner", unit, level).seen
    assert [equal(*pair) for pair in zip(one, other, strict=True)] == [True] * 5


def test_levels_of_a_policy_may_change_too() -> None:
    levels = {"fc1.weight": change(0.0, 0.5)}
    data: dict[str, Any] = {
        "version": 1,
        "pruners": {"c": {"class": "SparsityLevelParameterPruner", "levels": {"fc1.weight": 0.9}}},
        "policies": [
            {
                "pruner": {"instance_name": "c", "args": {"levels": levels}},
                "epochs": [0, 1, 2],
            }
        ],
    }
    net = MLP()
    scheduler = CompressionScheduler.from_dict(data, net, trace=SILENT)
    pruned = []
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch)
        pruned.append(int((net.fc1.weight == 0).sum()))
    assert pruned == [0, 24, 48]
    levels["fc1.weight"]["curve"] = "steep"
    with pytest.raises(ScheduleError, match=r"levels\.fc1\.weight\.curve: 'steep' is none of prunekit's own curves"):
        CompressionScheduler.from_dict(data, MLP())
