"""Schedule + registry + model + optimizer -> policies, or everything that is wrong, all of it at once."""

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
from prunekit.engine.conflicts import collisions, endings, exhausted, idle_policies
from prunekit.engine.policies import Policy
from prunekit.engine.problems import Problems
from prunekit.errors import Problem
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
    optimizer: Optimizer | None = None,
    epochs: int | None = None,
) -> Built:
    """Find, check and bind everything that a schedule names; the model and the optimizer are left as they are.

    Without a model nothing that depends on parameter names is checked; without `epochs`, not whether each policy acts.
    """
    problems = Problems(schedule.source)
    network = None if model is None else GivenModel(model, optimizer)
    found = find(schedule, registry, problems)
    checker = Checker(schedule, found, network, problems)
    policies = bind(checker.check(), network, problems)
    problems.errors += idle_policies(schedule, epochs)
    problems.errors += exhausted(schedule, policies, epochs)
    problems.errors += collisions(schedule, policies)
    problems.warnings += endings(schedule, policies, epochs)
    return Built(
        policies,
        {key: made.component for key, made in checker.made.items() if made.component is not None},
        [used for component in found.values() for used in component.of_plugins],
        network.catalog_if_asked if network else None,
        problems.errors,
        problems.warnings,
    )
