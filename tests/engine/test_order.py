"""What would not happen is said, once, and as soon as it is known; what can't be meant is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from helpers import MLP, Recorder, batches, pruning, train_attached, train_explicit, window
from torch import Tensor, nn

from prunekit import ComponentSpec, CompressionScheduler, PolicySpec, PrunekitError, Schedule, Trace, Window, hookimpl
from prunekit.components import LossTerm
from prunekit.engine.building.build import build
from prunekit.plugins.loading import load_plugins

AGP = {"initial_sparsity": 0.0, "final_sparsity": 0.8, "weights": "fc1.weight", "curve": "linear"}
RANKED = {"granularity": {"dim": 0}}
L1 = {"class": "L1Regularizer", "reg_regims": {"fc1.weight": 0.01}}
DOREFA = {"class": "DorefaQuantizer", "bits_weights": 4, "bits_activations": None}
LOAD = "a run that goes on loads its scheduler's state_dict()"
A_PRUNER = "SparsityLevelParameterPruner 'p', policies[0], prunekit-level-pruner 0.1.0"


class Told:
    """A scheduler of one network, and what it warns of."""

    def __init__(self, data: Any, **options: Any) -> None:
        self.model, self.log = MLP(), Recorder()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        make = CompressionScheduler if isinstance(data, Schedule) else CompressionScheduler.from_dict
        self.scheduler = make(data, self.model, self.optimizer, trace=Trace(logger=self.log), **options)

    @property
    def warnings(self) -> list[Any]:
        """The problem of each, or its event with its keys."""
        return [line.get("problem", {k: v for k, v in line.items() if k != "level"}) for line in self.log.warnings]


def schedule(kind: str, when: Mapping[str, Any], **keys: Any) -> dict[str, Any]:
    return {"version": 1, f"{kind}s": {"it": keys}, "policies": [{kind: {"instance_name": "it"}, **when}]}


# How the run ends


@pytest.mark.parametrize(
    ("class_", "keys", "epochs", "said"),
    [
        ("AutomatedGradualPruner", AGP, 3, "'it' comes to sparsity 0.4 and not to 0.8"),
        ("MovementPruner", AGP, 2, "'it' comes to sparsity 0.2 and not to 0.8"),
        ("L1RankedStructureParameterPruner_AGP", AGP | RANKED, 3, "'it' comes to sparsity 0.4 and not to 0.8"),
        ("GlobalMagnitudePruner_AGP", AGP, 4, "'it' comes to sparsity 0.6 and not to 0.8"),
        ("AutomatedGradualPruner", AGP | {"curve": "one-shot"}, 3, None),
        ("AutomatedGradualPruner", AGP, 5, None),
        ("SparsityLevelParameterPruner", {"levels": {"fc1.weight": 0.5}}, 2, None),
        ("SensitivityPruner", {"sensitivities": {"fc1.weight": 0.5}}, 2, None),
    ],
)
@pytest.mark.parametrize("known", ["at load", "in epochs()", "at the end"])
def test_a_curve_that_the_run_cuts_off_is_told_with_the_sparsity_that_it_comes_to(
    class_: str, keys: dict[str, Any], epochs: int, said: str | None, known: str
) -> None:
    data = schedule("pruner", window(0, 5), **{"class": class_, **keys})
    told = Told(data, **({"epochs": epochs} if known == "at load" else {}))
    if known != "at the end":
        next(told.scheduler.epochs(epochs))
    else:
        for epoch in range(epochs):
            told.scheduler.on_epoch_begin(epoch)
            told.scheduler.on_epoch_end(epoch)
        assert told.warnings == []
        told.scheduler.on_train_end()
        assert list(told.scheduler.endings) == told.warnings
    expected = [f"<dict>: policies[0]: a run of {epochs} epochs cuts it off: {said}"] if said else []
    assert told.warnings == expected


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        ([window(0, 3)], ["its last epoch is 2, and a run of 5 ends with 4"]),
        ([window(0, 5, 3)], ["its last epoch is 3, and a run of 5 ends with 4"]),
        ([window(0, 5, 4)], []),
        ([window(1, 200)], []),
        ([window(0, 3), window(3, 5)], []),
        ([window(0, 2), window(2, 4)], [f"its last epoch is {last}, and a run of 5 ends with 4" for last in (1, 3)]),
    ],
)
@pytest.mark.parametrize("with_model", [True, False])
def test_a_quantizer_whose_window_closes_before_the_end_is_told_of(
    windows: list[dict[str, int]], said: list[str], with_model: bool
) -> None:
    data = {
        "version": 1,
        "quantizers": {"it": DOREFA},
        "policies": [{"quantizer": {"instance_name": "it"}, **when} for when in windows],
    }
    built = build(Schedule.from_dict(data), load_plugins().registry, MLP() if with_model else None, epochs=5)
    told = [(problem.path, problem.message) for problem in built.warnings]
    what = "is over before the run is, and the result will be a float model: "
    assert told == [(f"policies[{index}]", what + why) for index, why in enumerate(said)]


def test_a_policy_that_a_run_of_unknown_length_never_came_to_is_told_of_at_its_end() -> None:
    told = Told(pruning(when=window(3, 5)))
    train_explicit(told.scheduler, told.optimizer, range(2))
    told.scheduler.on_train_end()
    assert told.warnings == ["<dict>: policies[0]: never acts: its first epoch is 3, and a run of 2 ends with 1"]


def test_what_was_said_when_the_schedule_was_loaded_is_not_said_again() -> None:
    told = Told(schedule("pruner", window(0, 5), **{"class": "AutomatedGradualPruner", **AGP}), epochs=3)
    train_attached(told.scheduler, told.optimizer, 3)
    assert told.warnings == [
        "<dict>: policies[0]: a run of 3 epochs cuts it off: 'it' comes to sparsity 0.4 and not to 0.8"
    ]


# Loss terms


def trained(told: Told, epochs: Iterable[int], backward: Callable[[CompressionScheduler, Tensor], Any]) -> None:
    for epoch in epochs:
        told.scheduler.on_epoch_begin(epoch)
        for x, y in told.scheduler.minibatches(batches()):
            told.optimizer.zero_grad()
            backward(told.scheduler, nn.functional.cross_entropy(told.model(x), y))
            told.optimizer.step()
        told.scheduler.on_epoch_end(epoch)


def dropped(scheduler: CompressionScheduler, loss: Tensor) -> None:
    scheduler.total_loss(loss)
    loss.backward()


class Adds:
    @hookimpl
    def before_backward_pass(self, loss: Tensor) -> LossTerm:
        return LossTerm("more", loss * 0.1)


@pytest.mark.parametrize("kind", ["regularizer", "extension"])
@pytest.mark.parametrize(
    ("backward", "said"),
    [
        (lambda scheduler, loss: loss.backward(), True),
        (dropped, True),
        (lambda scheduler, loss: scheduler.total_loss(loss).backward(), False),
        (lambda scheduler, loss: (2 * scheduler.total_loss(loss)).backward(), False),
    ],
    ids=["never asked for", "dropped", "trained on", "scaled"],
)
def test_terms_that_nobody_trains_on_are_told_of_when_the_first_active_epoch_ends(
    kind: str, backward: Any, said: bool
) -> None:
    if kind == "regularizer":
        told, who = Told(schedule(kind, window(1, 9), **L1)), "L1Regularizer 'it', policies[0], prunekit-l1-regularizer"
    else:
        told = Told(Schedule([ComponentSpec(kind, "it", Adds)], [PolicySpec(kind, "it", Window(1, 9))]))
        who = f"Adds 'it', policies[0], {__name__}"
    trained(told, [0], backward)
    assert told.warnings == []
    trained(told, [1, 2], backward)
    assert [(w["event"], w["epoch"], w["policies"][0].startswith(who)) for w in told.warnings] == (
        [("loss terms not trained on", 1, True)] if said else []
    )


def test_epochs_in_which_nothing_was_trained_miss_no_terms() -> None:
    told = Told(schedule("regularizer", window(0, 9), **L1))
    for _ in told.scheduler.epochs(2):
        pass
    assert told.warnings == []
    for x, _ in batches():  # a loop without mini-batch events, which is seen by its steps
        told.scheduler.on_epoch_begin(2)
        told.model(x).sum().backward()
        told.optimizer.step()
        told.scheduler.on_epoch_end(2)
        break
    assert [warning["event"] for warning in told.warnings] == ["loss terms not trained on"]


# Metrics


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (schedule("lr_scheduler", window(5, 9), **{"class": "ReduceLROnPlateau"}), True),
        (schedule("extension", window(5, 9), **{"class": "AccuracyGuard", "floor": 0.5}), True),
        (schedule("lr_scheduler", window(5, 9), **{"class": "ExponentialLR", "gamma": 0.9}), False),
        (pruning(), False),
    ],
    ids=["plateau", "guard", "exponential", "pruner"],
)
def test_metrics_that_will_be_needed_are_missed_when_the_first_epoch_ends_without(data: Any, said: bool) -> None:
    told, given = Told(data), Told(data)
    for epoch in range(2):
        for each, metrics in ((told, None), (given, {"min": 1.0})):
            each.scheduler.on_epoch_begin(epoch)
            each.scheduler.on_epoch_end(epoch, metrics=metrics)
    assert [(w["event"], w["epoch"], len(w["lacking"])) for w in told.warnings] == (
        [("metrics missing", 0, 1)] if said else []
    )
    assert given.warnings == []


# Events out of order


def no_epoch(run: CompressionScheduler) -> None:
    run.on_minibatch_begin(0, 0, 2)


def no_epoch_around_the_loader(run: CompressionScheduler) -> None:
    next(run.minibatches([1, 2]))


def other_epoch(run: CompressionScheduler) -> None:
    run.on_epoch_begin(0)
    run.on_minibatch_begin(1, 0, 2)


def epoch_over(run: CompressionScheduler) -> None:
    run.on_epoch_begin(0)
    run.on_epoch_end(0)
    run.on_minibatch_begin(0, 0, 2)


def other_epoch_later(run: CompressionScheduler) -> None:
    run.on_epoch_begin(0)
    run.on_minibatch_begin(0, 0, 2)
    run.on_minibatch_end(1, 0, 2)


def end_of_another(run: CompressionScheduler) -> None:
    run.on_epoch_begin(0)
    run.on_epoch_end(1)


def end_without_beginning(run: CompressionScheduler) -> None:
    run.on_epoch_end(0)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (no_epoch, "mini-batch 0 of epoch 0 begins, and no epoch is under way; call on_epoch_begin(0) first"),
        (no_epoch_around_the_loader, "mini-batch 0 of epoch 0 begins, and no epoch is under way; call on_epoch_begin"),
        (other_epoch, "mini-batch 0 of epoch 1 begins, and epoch 0 is under way; call on_epoch_begin(1) first"),
        (epoch_over, "mini-batch 0 of epoch 0 begins, and no epoch is under way; call on_epoch_begin(0) first"),
        (other_epoch_later, "mini-batch 0 of epoch 1 goes on, and epoch 0 is under way; call on_epoch_begin(1) first"),
        (end_of_another, "epoch 1 ends, and epoch 0 is under way; call on_epoch_begin(1) first"),
        (end_without_beginning, "epoch 0 ends, and no epoch is under way; call on_epoch_begin(0) first"),
    ],
)
def test_what_happens_in_an_epoch_that_has_not_begun_is_refused(events: Any, message: str) -> None:
    with pytest.raises(PrunekitError) as error:
        events(Told(pruning()).scheduler)
    assert str(error.value).startswith(message)
    assert str(error.value).endswith("or let `for epoch in scheduler.epochs(n)` do it")


def loop(run: CompressionScheduler, epochs: Any, minibatches: Any = range(3), number: int = 3, leave: Any = ()) -> None:
    for epoch in epochs:
        run.on_epoch_begin(epoch)
        for minibatch in minibatches:
            run.on_minibatch_begin(epoch, minibatch, number)
            if minibatch in leave:
                continue
            run.before_backward_pass(epoch, minibatch, number, torch.zeros(()))
            run.before_parameter_optimization(epoch, minibatch, number)
            run.on_minibatch_end(epoch, minibatch, number)
        run.on_epoch_end(epoch)


def never_ended(run: CompressionScheduler) -> None:
    for epoch in range(3):
        run.on_epoch_begin(epoch)


def never_begun(run: CompressionScheduler) -> None:
    run.on_epoch_begin(0)
    for minibatch in range(2):
        run.on_minibatch_end(0, minibatch, 2)
    run.on_epoch_end(0)


def again(run: CompressionScheduler) -> None:
    for epoch in run.epochs(3):
        if epoch == 1:
            break
    for _ in run.epochs(3):
        pass


OUT_OF_ORDER: dict[str, tuple[Callable[[CompressionScheduler], None], list[dict[str, Any]]]] = {
    "in order": (lambda run: loop(run, range(4)), []),
    "mini-batches left in the middle": (lambda run: loop(run, range(4), leave=(0, 1)), []),
    "mini-batches left out": (lambda run: loop(run, range(4), [0, 2]), []),
    "no mini-batches": (lambda run: loop(run, range(4), []), []),
    "epochs never ended": (never_ended, [{"event": "epoch not ended", "epoch": 0, "next": 1}]),
    "back again": (
        lambda run: loop(run, [0, 1, 2, 0, 1]),
        [{"event": "epoch begins again", "epoch": 0, "expected": 3}],
    ),
    "interrupted": (again, [{"event": "epoch begins again", "epoch": 1, "expected": 2}]),
    "passed over, nothing lost": (lambda run: loop(run, [0, 2, 3]), []),
    "passed over": (
        lambda run: loop(run, [7]),
        [{"event": "windows missed", "epoch": 7, "policies": [A_PRUNER], "advice": LOAD}],
    ),
    "the last epoch of a window passed over": (
        lambda run: loop(run, [0, 1, 3, 4]),
        [{"event": "windows missed", "epoch": 3, "policies": [A_PRUNER], "advice": LOAD}],
    ),
    "always mini-batch 0": (
        lambda run: loop(run, range(2), [0, 0, 2]),
        [{"event": "mini-batch begins again", "epoch": 0, "minibatch": 0, "last": 0}],
    ),
    "more than said": (
        lambda run: loop(run, range(2), range(5)),
        [{"event": "more mini-batches than said", "epoch": 0, "minibatch": 3, "minibatches_per_epoch": 3}],
    ),
    "fewer than said": (
        lambda run: loop(run, range(2), range(2)),
        [{"event": "fewer mini-batches than said", "epoch": 0, "minibatches": 2, "minibatches_per_epoch": 3}],
    ),
    "a loader longer than it says": (
        lambda run: [list(run.minibatches(iter([1, 2, 3]), length=2)) for _ in run.epochs(3)] and None,
        [{"event": "more mini-batches than said", "epoch": 0, "minibatch": 2, "minibatches_per_epoch": 2}],
    ),
    "mini-batches never begun": (
        never_begun,
        [{"event": "mini-batch not begun", "epoch": 0, "minibatch": 0, "begun": -1}],
    ),
}


@pytest.mark.parametrize(("events", "said"), OUT_OF_ORDER.values(), ids=OUT_OF_ORDER)
def test_what_is_probably_not_meant_is_said_once(events: Any, said: list[dict[str, Any]]) -> None:
    told = Told(pruning(when=window(1, 3)))
    events(told.scheduler)
    assert told.warnings == said


@pytest.mark.parametrize("within", [False, True])
def test_a_resumed_run_is_in_order(within: bool) -> None:
    first = Told(pruning(when=window(1, 3)))
    loop(first.scheduler, range(5))
    if within:
        first.scheduler.on_epoch_begin(5)
        first.scheduler.on_minibatch_begin(5, 0, 3)
        first.scheduler.on_minibatch_end(5, 0, 3)
    told = Told(pruning(when=window(1, 3)))
    told.scheduler.load_state_dict(first.scheduler.state_dict())
    if within:
        for minibatch in (1, 2):
            told.scheduler.on_minibatch_begin(5, minibatch, 3)
            told.scheduler.on_minibatch_end(5, minibatch, 3)
        told.scheduler.on_epoch_end(5)
    loop(told.scheduler, range(6 if within else 5, 8))
    assert told.warnings == []
    behind = Told(pruning(when=window(1, 3)))
    behind.scheduler.load_state_dict(first.scheduler.state_dict())
    behind.scheduler.on_epoch_begin(0)
    assert [warning["event"] for warning in behind.warnings][-1] == "epoch begins again"
