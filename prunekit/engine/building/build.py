"""Schedule + registry + model + optimizers -> policies, or everything that is wrong, all of it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer

from prunekit.engine.building.bind import bind
from prunekit.engine.building.check import Checker
from prunekit.engine.building.find import find
from prunekit.engine.checked import GivenModel, Used
from prunekit.engine.conflicts import collisions, endings, exhausted, idle_policies, undecided
from prunekit.engine.policies import Policy
from prunekit.engine.problems import Problems
from prunekit.engine.rates.jumps import jumps
from prunekit.errors import Problem
from prunekit.model.optimizer import groups_of
from prunekit.plugins.registry import Registry
from prunekit.quantization.catalog import Catalog
from prunekit.schedule.schedule import Schedule


@dataclass(frozen=True)
class Built:
    """What came of a schedule. Usable if `problems` is empty; `warnings` are what has no effect.

    `components` are the objects by the key of their state, `used` what of plugins the schedule names (classes, and
    curves and the like), and `catalog` what can be quantized, where somebody asked.
    """

    policies: Sequence[Policy]
    components: Mapping[str, Any]
    used: Sequence[Used]
    catalog: Catalog | None
    problems: Sequence[Problem]
    warnings: Sequence[Problem]


def build(
    schedule: Schedule,
    registry: Registry,
    model: Module | None = None,
    optimizers: Sequence[Optimizer] = (),
    epochs: int | None = None,
    steps_per_epoch: int = 0,
) -> Built:
    """Find, check and bind everything that a schedule names; the model and its optimizers are left as they are.

    Without a model nothing that depends on parameter names is checked; without `epochs`, not whether each policy acts,
    nor of windows in steps without `steps_per_epoch` (0: unknown), nor whether such a window and one in epochs meet.
    """
    problems = Problems(schedule.source)
    network = None if model is None else GivenModel(model, optimizers)
    found = find(schedule, registry, problems)
    checker = Checker(schedule, found, network, problems)
    policies = bind(checker.check(), network, problems)
    problems.errors += idle_policies(schedule, epochs, steps_per_epoch)
    problems.errors += exhausted(schedule, policies, epochs, steps_per_epoch)
    problems.errors += collisions(schedule, policies, steps_per_epoch)
    if not steps_per_epoch:
        problems.warnings += [clash.warning() for clash in undecided(schedule, policies)]
    if optimizers and not problems.errors:
        problems.warnings += jumps(schedule, policies, groups_of(optimizers))
    problems.warnings += endings(schedule, policies, epochs, steps_per_epoch)
    return Built(
        policies,
        {key: made.component for key, made in checker.made.items() if made.component is not None},
        [used for component in found.values() for used in component.of_plugins],
        network.catalog_if_asked if network else None,
        problems.errors,
        problems.warnings,
    )
