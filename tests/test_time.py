"""Where training stands, and what a window says of it: whole tables, to be checked by eye."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from helpers import MLP, SILENT, Recorder, zeros
from hypothesis import given, strategies as st
from torch import nn

from prunekit import ComponentSpec, CompressionScheduler, PolicySpec, Progress, Schedule, Trace, Window, hookimpl
from prunekit.progress import BEFORE_TRAINING, Clock

# Progress


def test_progress_counts_epochs_minibatches_and_steps() -> None:
    """Two mini-batches make a step; the epochs have three."""
    clock, seen = Clock(), []
    for epoch in range(2):
        clock.begin_epoch(epoch)
        seen.append(tuple(clock.progress))
        for minibatch in range(3):
            clock.begin_minibatch(epoch, minibatch, 3)
            seen.append(tuple(clock.progress))
            clock.stepped = clock.minibatch_of_step == 1
    assert seen == [
        (0, -1, 0, 0, -1, False),
        (0, 0, 3, 0, 0, False),
        (0, 1, 3, 0, 1, False),
        (0, 2, 3, 1, 0, False),
        (1, -1, 3, 1, 0, False),  # the step goes on
        (1, 0, 3, 1, 1, False),
        (1, 1, 3, 2, 0, False),
        (1, 2, 3, 2, 1, False),
    ]
    clock.end_epoch(1)
    assert clock.progress == Progress(1, -1, 3, 2, 1, stepped=True)
    clock.begin_epoch(2)
    assert clock.progress == Progress(2, -1, 3, 3, -1, stepped=False)


def test_a_minibatch_has_a_number_in_the_run() -> None:
    assert [Progress(*when, 4).minibatch_of_run for when in [(0, 0), (0, 3), (1, 0), (2, 1)]] == [0, 3, 4, 9]
    assert [Progress(0, minibatch, 4).is_last_minibatch for minibatch in range(4)] == [False, False, False, True]


def test_the_trace_tells_epoch_and_minibatch() -> None:
    assert Progress(2, 3, 4, 11).trace_keys() == {"epoch": 2, "minibatch": 3}
    assert Progress(2, -1, 4, 11).trace_keys() == {"epoch": 2}
    assert BEFORE_TRAINING.trace_keys() == {"epoch": 0}


class Heard:
    """Where training stands when each mini-batch begins and ends."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, int, bool]] = []

    @hookimpl
    def on_minibatch_begin(self, progress: Progress) -> None:
        self.heard.append(("begin", progress.step, progress.minibatch_of_step, progress.stepped))

    @hookimpl
    def on_minibatch_end(self, progress: Progress) -> None:
        self.heard.append(("end", progress.step, progress.minibatch_of_step, progress.stepped))


def heard_in_three_minibatches(every: int, number: int = 1, *, known: bool = True) -> list[tuple[str, int, int, bool]]:
    """`number` optimizers step after `every` mini-batches; the loop itself does where they are not `known`."""
    net = MLP()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for _ in range(number)]
    schedule = Schedule([ComponentSpec("extension", "h", Heard)], [PolicySpec("extension", "h", Window(0, 1))])
    scheduler = CompressionScheduler(schedule, net, optimizers[0] if known else None, trace=SILENT)
    scheduler.on_epoch_begin(0, optimizers[-1] if known else None)
    for minibatch in range(3):
        scheduler.on_minibatch_begin(0, minibatch, 3)
        net(torch.ones(1, 12)).sum().backward()
        for optimizer in optimizers if (minibatch + 1) % every == 0 else ():
            step = optimizer.step if known else partial(step_by_hand, net)
            step()
        scheduler.on_minibatch_end(0, minibatch, 3)
    heard: list[tuple[str, int, int, bool]] = scheduler.components["extensions.h"].heard
    return heard


def step_by_hand(net: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 0.1 * (torch.zeros(1) if parameter.grad is None else parameter.grad)


ONE_EACH = [
    ("begin", 0, 0, False),
    ("end", 0, 0, True),
    ("begin", 1, 0, False),
    ("end", 1, 0, True),
    ("begin", 2, 0, False),
    ("end", 2, 0, True),
]


def test_a_step_is_counted_when_the_optimizer_has_taken_it() -> None:
    assert heard_in_three_minibatches(every=1) == ONE_EACH
    assert heard_in_three_minibatches(every=2) == [
        ("begin", 0, 0, False),
        ("end", 0, 0, False),
        ("begin", 0, 1, False),
        ("end", 0, 1, True),
        ("begin", 1, 0, False),
        ("end", 1, 0, False),
    ]


def test_several_optimizers_take_one_step_together_and_a_step_by_hand_counts_in_each_minibatch() -> None:
    assert heard_in_three_minibatches(1, number=2) == ONE_EACH
    assert heard_in_three_minibatches(2, known=False) == ONE_EACH


# Windows

QUESTIONS = "is_active", "is_open", "prepares", "is_last", "begins"
EVERY_SECOND, LISTED, ONCE = Window(2, 7, 2), Window(epochs=[2, 3, 6]), Window(1, 2)


def answers(window: Window) -> list[str]:
    """For each epoch from -1 on: the initials of the questions that are answered with yes when it begins."""
    return [
        "".join(question.removeprefix("is_")[0] for question in QUESTIONS if getattr(window, question)(Progress(epoch)))
        for epoch in range(-1, 8)
    ]


def test_a_window_says_of_each_epoch_what_it_is() -> None:
    """a: active, o: open, p: what happens in it may count, l: the last active one, b: an active one begins."""
    #                              -1   0    1       2       3       4       5       6       7
    assert answers(EVERY_SECOND) == ["", "", "p", "aopb", "op", "aopb", "op", "aoplb", ""]
    assert answers(LISTED) == ["", "", "p", "aopb", "aopb", "op", "op", "aoplb", ""]
    assert answers(ONCE) == ["", "p", "aoplb", "", "", "", "", "", ""]
    assert answers(Window(0, 1)) == ["p", "aoplb", "", "", "", "", "", "", ""]


def test_before_training_the_first_epoch_is_prepared_for() -> None:
    assert [Window(first, 9).prepares(BEFORE_TRAINING) for first in (0, 1, 2)] == [True, False, False]


def test_it_knows_its_last_minibatch_and_when_it_is_over() -> None:
    moments = [Progress(epoch, minibatch, 2) for epoch in (0, 1, 2) for minibatch in (0, 1, -1)]
    assert [(now.epoch, now.minibatch) for now in moments if ONCE.is_last_minibatch(now)] == [(1, 1)]
    assert [(now.epoch, now.minibatch) for now in moments if ONCE.ends(now)] == [(1, -1)]
    assert [(now.epoch, now.minibatch) for now in moments if ONCE.begins(now)] == [(1, -1)]


@pytest.mark.parametrize(
    ("window", "elapsed", "fractions"),
    [
        (EVERY_SECOND, [0, 2, 4], [0, 0.5, 1]),
        (LISTED, [0, 1, 4], [0, 0.25, 1]),
        (ONCE, [0], [1]),
    ],
)
def test_time_in_its_active_epochs(window: Window, elapsed: list[int], fractions: list[float]) -> None:
    moments = [Progress(epoch) for epoch in window.active]
    assert [window.elapsed(now) for now in moments] == elapsed
    assert [window.fraction(now) for now in moments] == fractions
    assert [window.time(now) for now in moments] == list(window.active)
    assert [window.time_after(now) for now in moments] == [epoch + 1 for epoch in window.active]


def test_time_in_minibatches() -> None:
    when = [Progress(2, 0, 4), Progress(2, 3, 4), Progress(5, 1, 4)]
    assert [EVERY_SECOND.minibatches_elapsed(now) for now in when] == [0, 3, 13]
    assert EVERY_SECOND.minibatches(when[0]) == 20, "epochs 2 to 6"
    assert EVERY_SECOND.minibatches(Progress(2)) == 0, "unknown"


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        # length, acts once, opens at start, opening, closing, epochs to end, epochs to act, time within 4 epochs
        (EVERY_SECOND, (5, False, False, Progress(2), Progress(6), 7, 3, 4)),
        (LISTED, (5, False, False, Progress(2), Progress(6), 7, 3, 4)),
        (ONCE, (1, True, False, Progress(1), Progress(1), 2, 2, 2)),
        (Window(0, 9, 20), (9, True, True, Progress(0), Progress(0), 9, 1, 1)),
    ],
)
def test_what_is_known_of_it_before_training(window: Window, expected: tuple[Any, ...]) -> None:
    of_it = (window.length, window.acts_once, window.opens_at_start, window.opening, window.closing)
    assert (*of_it, window.epochs_to_end(), window.epochs_to_act(), window.time_within(4)) == expected


def test_a_run_that_is_too_short_misses_it() -> None:
    assert [bool(EVERY_SECOND.missed_by(epochs)) for epochs in (1, 2, 3, 7)] == [True, True, False, False]
    assert EVERY_SECOND.missed_by(2) == "its first epoch is 2, and a run of 2 ends with 1"


def test_it_is_told_and_written_as_its_arguments() -> None:
    assert [EVERY_SECOND.label(), EVERY_SECOND.label(4)] == ["epoch 2", "epoch 6"]
    assert EVERY_SECOND.to_dict() == {"starting_epoch": 2, "ending_epoch": 7, "frequency": 2}
    assert LISTED.to_dict() == {"epochs": [2, 3, 6]}
    assert repr(LISTED) == "Window(epochs=[2, 3, 6])"
    assert (Window(epochs=[2, 3, 6]), Window(2, 7, 2)) == (LISTED, EVERY_SECOND)
    assert Window(2, 8, 2) != EVERY_SECOND, "its length is another"


def test_without_gaps_it_is_active_whenever_it_is_open() -> None:
    assert list(EVERY_SECOND.without_gaps().active) == list(LISTED.without_gaps().active) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (EVERY_SECOND, LISTED, "epoch 2"),
        (EVERY_SECOND, Window(3, 9, 2), None),
        (Window(0, 10, 2), Window(1, 10, 3), "epoch 4"),
        (Window(0, 10**9), Window(10**9 - 1, 10**10, 7), f"epoch {10**9 - 1}"),
        (Window(0, 3), Window(3, 6), None),
        (Window(epochs=[1, 5]), Window(epochs=[0, 5, 6]), "epoch 5"),
    ],
)
def test_two_windows_overlap_from_the_first_epoch_that_both_have(one: Window, other: Window, overlap: Any) -> None:
    assert (one.overlap(other), other.overlap(one)) == (overlap, overlap)


UNITS = st.sampled_from(["epoch", "step"])


@st.composite
def windows(draw: Any, units: st.SearchStrategy[str] = UNITS) -> Window:
    unit = draw(units)
    if draw(st.booleans()):
        numbers = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=6)))
        return Window(**{f"{unit}s": numbers})  # type: ignore[arg-type]
    start, frequency = draw(st.integers(0, 20)), draw(st.integers(1, 12))
    bounds = {f"starting_{unit}": start, f"ending_{unit}": start + draw(st.integers(1, 30))}
    return Window(**bounds, frequency=frequency)


def beginning(window: Window, number: int) -> Progress:
    """The moment at which that epoch, or step, begins."""
    return Progress(number) if window.unit == "epoch" else Progress(0, 0, 0, number, 0)


@given(st.data(), UNITS)
def test_overlap_is_what_counting_through_finds(data: st.DataObject, unit: str) -> None:
    one, other = data.draw(windows(st.just(unit))), data.draw(windows(st.just(unit)))
    common = sorted(set(one.active) & set(other.active))
    assert one.overlap(other) == other.overlap(one) == (f"{unit} {common[0]}" if common else None)


@given(windows(), st.integers(-1, 60))
def test_the_questions_agree_with_each_other(window: Window, number: int) -> None:
    now, active = beginning(window, number), list(window.active)
    assert window.is_active(now) == (number in active)
    assert window.is_open(now) == (active[0] <= number <= active[-1]) == window.without_gaps().is_active(now)
    assert window.prepares(now) == (window.is_open(now) or number == active[0] - 1)
    assert window.is_last(now) == (number == active[-1])
    assert bool(window.missed_by(number, 1)) != any(window.is_active(beginning(window, n)) for n in range(number))
    if window.is_open(now):
        assert 0 <= window.fraction(now) <= 1
        assert window.label(window.elapsed(now)) == f"{window.unit} {number}"


@given(windows(), st.integers(0, 60))
def test_nothing_changes_until_it_is_said_to(window: Window, number: int) -> None:
    def answers(number: int) -> list[bool]:
        questions = "is_active", "is_open", "is_last", "prepares"
        return [getattr(window, question)(beginning(window, number)) for question in questions]

    until = min(window.unchanged_until(beginning(window, number)), 70)
    assert until > number
    assert all(answers(each) == answers(number) for each in range(number, until))


@given(windows())
def test_fractions_rise_from_0_to_1(window: Window) -> None:
    fractions = [window.fraction(beginning(window, number)) for number in window.active]
    assert fractions == sorted(set(fractions))
    assert (fractions[0], fractions[-1]) == (1.0 if window.acts_once else 0.0, 1.0)
    assert (window.fraction(window.opening), window.fraction(window.closing)) == (fractions[0], fractions[-1])


@given(windows())
def test_its_keys_make_it_again(window: Window) -> None:
    assert Window(**window.to_dict()) == window == eval(repr(window))


# Windows in steps: what asks a window need not know what it counts


def steps(start: int, end: int, frequency: int = 1) -> Window:
    return Window(starting_step=start, ending_step=end, frequency=frequency)


def moments(every: int = 1, minibatches: int = 4) -> list[Progress]:
    """Two epochs of `minibatches`, a step after `every` of them: where training stands at each event."""
    clock, seen = Clock(), []
    for epoch in range(2):
        clock.begin_epoch(epoch)
        seen.append(clock.progress)
        for minibatch in range(minibatches):
            clock.begin_minibatch(epoch, minibatch, minibatches)
            seen.append(clock.progress)
            clock.stepped = (epoch * minibatches + minibatch + 1) % every == 0
            clock.tell(epoch, minibatch, minibatches)
            seen.append(clock.progress)
        clock.end_epoch(epoch)
        seen.append(clock.progress)
    return seen


def said(window: Window, *questions: str, every: int = 1, minibatches: int = 4) -> list[list[tuple[int, int, int]]]:
    """For each question the moments at which it is answered with yes: (epoch, mini-batch, 1 if stepped)."""
    when = [(now, (now.epoch, now.minibatch, int(now.stepped))) for now in moments(every, minibatches)]
    return [list(dict.fromkeys(place for now, place in when if getattr(window, q)(now))) for q in questions]


def test_a_step_begins_with_its_first_minibatch_and_ends_when_it_has_been_taken() -> None:
    """Steps 3 and 4 are the last of epoch 0 and the first of epoch 1; between the epochs none goes on."""
    active, begins, ends = said(steps(3, 5), "is_active", "begins", "ends")
    assert active == [(0, 3, 0), (0, 3, 1), (0, -1, 1), (1, 0, 0), (1, 0, 1)]
    assert begins == [(0, 3, 0), (1, 0, 0)]
    assert ends == [(1, 0, 1)]
    is_open, last, last_minibatch = said(steps(3, 5), "is_open", "is_last", "is_last_minibatch")
    assert is_open == [(0, 3, 0), (0, 3, 1), (0, -1, 1), (1, -1, 0), (1, 0, 0), (1, 0, 1)]
    assert last == [(1, 0, 0), (1, 0, 1)]
    assert last_minibatch == [(1, 0, 1)]


def test_a_step_may_go_on_from_one_epoch_to_the_next() -> None:
    """Three mini-batches make a step, and an epoch has four: step 1 goes on in epoch 1."""
    active, begins, ends = said(steps(1, 2), "is_active", "begins", "ends", every=3)
    assert active == [(0, 3, 0), (0, -1, 0), (1, -1, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)]
    assert begins == [(0, 3, 0)]
    assert ends == [(1, 1, 1)]


def test_a_window_in_steps_says_of_each_step_what_it_is() -> None:
    table = [
        "".join(q.removeprefix("is_")[0] for q in QUESTIONS if getattr(steps(2, 7, 2), q)(Progress(0, 0, 9, step, 0)))
        for step in range(8)
    ]
    assert table == ["", "p", "aopb", "op", "aopb", "op", "aoplb", ""]
    assert [Window(steps=[first]).prepares(BEFORE_TRAINING) for first in (0, 1, 2)] == [True, False, False]


def test_time_in_steps() -> None:
    window = steps(2, 9, 3)
    whole = [Progress(1, 0, 9, step, 0) for step in window.active]
    assert [window.elapsed(now) for now in whole] == [0, 3, 6]
    assert [window.fraction(now) for now in whole] == [0, 0.5, 1]
    assert [window.time(now) for now in whole] == [2, 5, 8]
    assert [window.time_after(now._replace(stepped=True)) for now in whole] == [3, 6, 9]
    assert [window.time_after(now) for now in whole] == [2, 5, 8], "gradients are being accumulated"
    assert [window.minibatches_elapsed(now) for now in whole] == [0, 3, 6]
    assert window.minibatches(whole[0]) == 7


def test_time_in_steps_between_two_epochs() -> None:
    """Four steps are over, none goes on: the next is step 4."""
    between = Progress(1, -1, 4, 4, -1)
    assert (steps(2, 9).time(between), steps(2, 9).elapsed(between), steps(4, 9).is_open(between)) == (4, 1, False)
    assert [steps(5, 6).prepares(between), steps(4, 5).prepares(between), steps(2, 4).prepares(between)] == [
        False,
        True,
        False,
    ]


def test_what_is_known_of_steps_before_training_depends_on_how_many_an_epoch_has() -> None:
    window = steps(20, 41, 10)
    assert (window.length, window.acts_once, window.opens_at_start) == (21, False, False)
    assert (window.opening.step, window.closing.step) == (20, 40)
    assert (window.is_active(window.opening), window.is_last(window.closing)) == (True, True)
    assert [window.epochs_to_end(), window.epochs_to_act(), window.time_within(2)] == [None, None, 41]
    assert [window.epochs_to_end(10), window.epochs_to_act(10), window.time_within(2, 10)] == [5, 3, 20]
    assert [window.missed_by(1), window.missed_by(3, 10)] == ["", ""]
    assert window.missed_by(2, 10) == "its first step is 20, and a run of 20 ends with 19"


def test_a_window_counts_epochs_or_steps() -> None:
    assert [steps(2, 7, 2).unit, Window(steps=[3]).unit, EVERY_SECOND.unit] == ["step", "step", "epoch"]
    assert steps(2, 7, 2) != Window(2, 7, 2)
    assert (steps(0, 4).begin_hook, steps(0, 4).end_hook) == ("on_minibatch_begin", "on_minibatch_end")
    assert (EVERY_SECOND.begin_hook, EVERY_SECOND.end_hook) == ("on_epoch_begin", "on_epoch_end")
    assert [steps(2, 7, 2).label(), steps(2, 7, 2).label(4)] == ["step 2", "step 6"]
    assert steps(2, 7, 2).to_dict() == {"starting_step": 2, "ending_step": 7, "frequency": 2}
    assert Window(steps=[2, 3, 6]).to_dict() == {"steps": [2, 3, 6]}
    assert steps(2, 7, 2).without_gaps() == steps(2, 7)
    assert steps(4, 16, 2).scaled(0.5) == steps(2, 8)
    assert Window(steps=[1, 2, 8]).scaled(0.5) == Window(steps=[0, 1, 4])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"starting_epoch": 0, "ending_step": 4}, "a window is in epochs or in steps, not in both"),
        ({"epochs": [0], "steps": [1]}, "a window is in epochs or in steps, not in both"),
        ({"starting_step": 4, "ending_step": 4}, "0 <= starting_step < ending_step must hold, got 4 and 4"),
        ({"steps": [2, 2]}, "steps must be ascending, not negative and at least one, got [2, 2]"),
        ({"ending_step": 4, "frequency": 0}, "frequency must be at least 1, got 0"),
    ],
)
def test_a_window_in_steps_says_what_is_wrong(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Window(**keys)


def test_whether_epochs_and_steps_overlap_nobody_can_tell() -> None:
    assert steps(0, 10, 2).overlap(steps(1, 10, 3)) == "step 4"
    for one, other in [(steps(0, 4), EVERY_SECOND), (EVERY_SECOND, steps(0, 4))]:
        with pytest.raises(ValueError, match="depends on how many steps an epoch has"):
            one.overlap(other)


class Stepping:
    """Two epochs of `minibatches`, a step of the optimizer after `every` of them, and what each mini-batch shows."""

    def __init__(self, components: list[ComponentSpec], window: Window, every: int = 1, minibatches: int = 4) -> None:
        policies = [PolicySpec(spec.kind, spec.name, window) for spec in components]
        self.net, self.log = MLP(), Recorder()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1.0)
        trace = Trace(logger=self.log)
        self.scheduler = CompressionScheduler(Schedule(components, policies), self.net, self.optimizer, trace=trace)
        self.every, self.number = every, minibatches
        self.rates: list[float] = []
        self.zeros: list[int] = []
        self.values: list[int] = []
        self.terms: list[bool] = []
        for epoch in range(2):
            self.scheduler.on_epoch_begin(epoch)
            for minibatch in range(minibatches):
                self.minibatch(epoch, minibatch)
            self.scheduler.on_epoch_end(epoch)

    def minibatch(self, epoch: int, minibatch: int) -> None:
        self.scheduler.on_minibatch_begin(epoch, minibatch, self.number)
        self.rates.append(round(self.optimizer.param_groups[0]["lr"], 6))
        self.zeros.append(zeros(self.net.fc1.weight))
        self.values.append(len(self.scheduler.quantized.read(self.net.fc1.weight).unique()))
        loss = nn.functional.mse_loss(self.net(torch.ones(1, 12)), torch.ones(1, 4)) / 100
        total = self.scheduler.before_backward_pass(epoch, minibatch, self.number, loss)
        self.terms.append(total is not loss)
        total.backward()
        if (epoch * self.number + minibatch + 1) % self.every == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.scheduler.on_minibatch_end(epoch, minibatch, self.number)

    def told(self, event: str) -> list[list[int]]:
        return self.log.values(event, "epoch", "minibatch")


AGP = {"initial_sparsity": 0.0, "final_sparsity": 0.5, "weights": "fc1.weight", "curve": "linear"}


@pytest.mark.parametrize("every", [1, 2])
def test_a_curve_along_steps(every: int) -> None:
    """0, a quarter and a half of 96 weights at steps 1, 3 and 5."""
    minibatches = 4 * every
    run = Stepping([ComponentSpec("pruner", "p", "AutomatedGradualPruner", AGP)], steps(1, 6, 2), every, minibatches)
    assert run.zeros == [zeros for zeros in (0, 0, 0, 24, 24, 48, 48, 48) for _ in range(every)]
    assert run.told("window opens") == [[0, every]]
    assert run.told("window closes") == [[1, 2 * every - 1]]


@pytest.mark.parametrize("every", [1, 2])
def test_learning_rates_along_steps(every: int) -> None:
    lr = ComponentSpec("lr_scheduler", "lr", "ExponentialLR", {"gamma": 0.5})
    rates = [rate for rate in (1.0, 0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0625, 0.0625) for _ in range(every)]
    assert Stepping([lr], steps(0, 4), every, 4 * every).rates == rates


def test_terms_and_quantized_weights_along_steps() -> None:
    regularizer = ComponentSpec("regularizer", "r", "L1Regularizer", {"reg_regims": {"fc2.weight": 0.01}})
    assert Stepping([regularizer], steps(2, 6, 2)).terms == [step in (2, 4) for step in range(8)]
    quantizer = ComponentSpec("quantizer", "q", "WRPNQuantizer", {"bits_weights": 2, "bits_activations": None})
    few = [values <= 4 for values in Stepping([quantizer], steps(2, 7, 2)).values]
    assert few == [2 <= step <= 6 for step in range(8)]
