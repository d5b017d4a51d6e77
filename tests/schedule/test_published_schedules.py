"""Schedules published with Distiller: each loads and does what it asks for, or is refused for a defect of its own.

They are no part of this project. The tests read them from the folder that PRUNEKIT_PUBLISHED_SCHEDULES names, or from
`../shared/distiller-schedules` beside the checkout, and skip where there is none.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from examples.published import MODELS, Outcome, application, run
from prunekit import Schedule

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("PRUNEKIT_PUBLISHED_SCHEDULES", ROOT.parent / "shared" / "distiller-schedules"))
FILES = sorted(FOLDER.glob("*.yaml"))
DUPLICATE_KEYS = "ssl__ssl_channels-removal_training.yaml"
RANDOM = ("BernoulliFilterPruner", "BernoulliFilterPruner_AGP")

needs_them = pytest.mark.skipif(not FILES, reason=f"the published schedules are not here ({FOLDER.name})")


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_every_network_learns_from_a_batch(make) -> None:
    torch.manual_seed(0)
    name = next(pattern for pattern, known in MODELS.items() if known is make)
    app = application(name.replace("*", "x"))
    inputs, targets = next(iter(app.train_loader))
    loss = app.loss(app.model(inputs), targets)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in app.model.parameters())
    assert 0 < loss.item() < 2 * math.log(app.model(inputs).shape[1])


@needs_them
def test_a_schedule_with_keys_that_stand_twice_and_say_the_same_is_warned_about_where_they_stand() -> None:
    warnings = Schedule.from_yaml(FOLDER / DUPLICATE_KEYS).warnings()
    assert [(problem.position.line, problem.message) for problem in warnings if problem.position.line != 1] == [
        (16, "the key 'module.layer2.1.conv2.weight' stands twice, with equal values; the first is on line 15"),
        (19, "the key 'module.layer3.1.conv2.weight' stands twice, with equal values; the first is on line 18"),
    ]


@needs_them
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_published_schedule_reaches_what_it_asks_for(path: Path, tmp_path: Path) -> None:
    outcome = run(path, tmp_path / "run")
    assert outcome.refused == ""
    schedule = Schedule.from_yaml(path)
    pruners = {spec.name: spec for spec in schedule.components if spec.kind == "pruner"}
    used = {policy.instance_name for policy in schedule.policies if policy.kind == "pruner"}
    assert set(outcome.reached) >= used
    for name in used & set(outcome.asked):
        if pruners[name].class_name not in RANDOM:
            # A ranking that does not look at weights may choose others: the ones before are zero until they learn.
            others = pruners[name].class_name.startswith("Activation")
            reaches(outcome, name, pruners[name].args.get("group_type"), others)


def reaches(outcome: Outcome, component: str, group_type: str | None, others: bool = False) -> None:
    """Exactly floor(s · n) units of each tensor are zero, or as many and others."""
    model = dict(application(outcome.file).model.named_parameters())
    asked = outcome.asked[component]
    for name, reached in outcome.reached[component].items():
        shape = model[name].shape
        units = {None: shape.numel(), "Filters": shape[0], "Channels": shape[1], "Rows": shape[1]}[group_type]
        expected = math.floor(asked * units) / units
        assert reached >= expected if others else reached == pytest.approx(expected, abs=1e-9), (component, name)
