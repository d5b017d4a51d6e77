"""Laws of training with a component: the same again, continued, compiled, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from prunekit.components.context import Stateful
from prunekit.testing.laws import (
    ACTING,
    COMPONENTS,
    LISTENER,
    LR_SCHEDULER,
    QUANTIZER,
    NotApplicable,
    law,
    listed,
    must,
)
from prunekit.testing.runs import EPOCHS, LAST, MINIBATCHES, Run, differences, straight_outcome, through_a_file
from prunekit.testing.subject import Subject
from prunekit.testing.tiny import TinyNet

WITHIN = (2, 2)
"""Epoch and mini-batch before which a run is stopped in the middle of things."""


@law(*COMPONENTS, LISTENER, basic=True)
def runs(subject: Subject) -> None:
    """It takes part in a training from the first epoch to the last."""
    Run(subject).train(range(EPOCHS)).scheduler.on_train_end()


@law(*COMPONENTS, LISTENER)
def deterministic(subject: Subject) -> None:
    """Two runs with the same seed end the same, bit for bit."""
    found = list(differences(straight_outcome(subject), Run(subject).train(range(EPOCHS)).outcome()))
    must(not found, "the same outcome twice", listed(found))


@law(*COMPONENTS)
def state_round_trip(subject: Subject) -> None:
    """What it remembers survives a file, fits a new instance, and stays as it was when it was saved."""
    run = Run(subject).train(range(3))
    if not isinstance(run.component, Stateful):
        raise NotApplicable("it has no state_dict() and load_state_dict()")
    state = run.component.state_dict()
    at_the_time = deepcopy(state)
    saved = through_a_file(state)
    other = Run(subject).component
    other.load_state_dict(through_a_file(state))
    found = list(differences(saved, through_a_file(other.state_dict())))
    must(not found, "the state that was loaded", listed(found))
    run.train([3])
    found = list(differences(at_the_time, state))
    must(not found, "a saved state that later training does not change", listed(found))


@law(*COMPONENTS, LISTENER)
def resume(subject: Subject) -> None:
    """A run that is stopped anywhere and continued in a new process ends as if it had never stopped, bit for bit."""
    straight, stopped = straight_outcome(subject), Run(subject)
    saved, within = {}, {}
    for epoch in range(EPOCHS):
        saved[epoch] = stopped.saved()
        stopped.scheduler.on_epoch_begin(epoch)
        for minibatch in range(MINIBATCHES):
            if (epoch, minibatch) == WITHIN:
                within = stopped.saved()
            stopped.minibatch(epoch, minibatch)
        stopped.end(epoch)
    for epochs in (1, 2, 4, 5):
        resumed = Run.continued(subject, saved[epochs]).train(range(epochs, EPOCHS))
        found = list(differences(straight, resumed.outcome()))
        must(not found, f"stopped after {epochs} of {EPOCHS} epochs: the outcome of the straight run", listed(found))
    found = list(differences(straight, _continued_within_an_epoch(subject, within).outcome()))
    must(not found, f"stopped within epoch {WITHIN[0]}: the outcome of the straight run", listed(found))


@law(*ACTING)
def quiet_outside_its_window(subject: Subject) -> None:
    """Before its window opens, and while it is made, it changes nothing: no weight, no random number."""
    plain, with_it = (Run(subject, absent=absent).train([0]).outcome() for absent in (True, False))
    rates = with_it["learning_rates"][: len(plain["learning_rates"])]  # a quantizer may train more than the model
    found = list(differences({**plain, "component": {}}, {**with_it, "component": {}, "learning_rates": rates}))
    must(not found, "the run as it is without it", listed(found))


@law(LISTENER)
def only_listens(subject: Subject) -> None:
    """With it or without, a run is the same: weights, masks, learning rates, random numbers."""
    plain = Run(subject, absent=True).train(range(EPOCHS)).outcome()
    found = list(differences(plain, straight_outcome(subject)))
    must(not found, "the run as it is without it", listed(found))


@law(*ACTING)
def compiled(subject: Subject) -> None:
    """A model that torch.compile has made is compiled once, however often masks change, and ends the same."""
    # Here, because it takes a second and no other law needs it.
    import torch._dynamo

    torch._dynamo.reset()
    eager = straight_outcome(subject)
    run = Run(subject, wrap=lambda model: torch.compile(model, backend="eager"))  # type: ignore[arg-type, return-value]
    run.train([0, 1])
    graphs = _graphs()
    run.train(range(2, LAST + 1))
    again = _graphs() - graphs
    must(not again, "no compilation in epochs 2 to 4 of a window that opened in epoch 1", f"{again}")
    run.train(range(LAST + 1, EPOCHS))
    outcome = run.outcome()
    weights = {name.removeprefix("_orig_mod."): value for name, value in outcome["weights"].items()}
    found = list(differences({**eager, "random": 0}, {**outcome, "weights": weights, "random": 0}))
    must(not found, "the outcome of the model that is not compiled", listed(found))


@law(QUANTIZER)
def strict_load(subject: Subject) -> None:
    """Under a quantizer a model has the state of a float one, loads its own, and its optimizer has its parameters."""
    run = Run(subject).train(range(LAST))
    state, plain = run.model.state_dict(), TinyNet()
    must(list(state) == list(plain.state_dict()), f"the state {listed(plain.state_dict())}", listed(state))
    run.model.load_state_dict(through_a_file(state))
    plain.load_state_dict(state)
    held = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    lost = [name for name, parameter in run.model.named_parameters() if id(parameter) not in held]
    must(not lost, "an optimizer with the parameters of the model", f"one without {listed(lost)}")


@law(LR_SCHEDULER)
def rate_of_the_epoch(subject: Subject) -> None:
    """The learning rate is finite, not negative, and the same for an epoch however one gets there."""
    schedule = subject.make()
    if schedule.takes_metrics:
        raise NotApplicable("it looks at metrics, not at the epoch")
    forward = [schedule.at(epoch)[0]["lr"] for epoch in range(EPOCHS)]
    bad = [f"{rate} in epoch {epoch}" for epoch, rate in enumerate(forward) if not math.isfinite(rate) or rate < 0]
    must(not bad, "rates from 0 up", listed(bad))
    backward = [subject.make().at(epoch)[0]["lr"] for epoch in reversed(range(EPOCHS))][::-1]
    must(forward == backward, f"rates {forward}", f"{backward} when each is asked for alone")


def _continued_within_an_epoch(subject: Subject, saved: Mapping[str, Any]) -> Run:
    run, (epoch, first) = Run.continued(subject, saved), WITHIN
    for minibatch in range(first, MINIBATCHES):
        run.minibatch(epoch, minibatch)
    run.end(epoch)
    return run.train(range(epoch + 1, EPOCHS))


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
