"""For plugin authors: the laws that every component keeps, and a task that trains in a blink.

def test_it_keeps_the_laws():
    check_component("MyPruner", desired_sparsity=0.5, weights="*.weight")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.testing.card import epochs_under_card as epochs_under_card
    from prunekit.testing.check import LAWS as LAWS, check_component as check_component
    from prunekit.testing.laws import LawsBroken as LawsBroken, Report as Report
    from prunekit.testing.masks import groups_gone as groups_gone, weights_model as weights_model
    from prunekit.testing.ranked import (
        RankedCountTests as RankedCountTests,
        RankedOrderTests as RankedOrderTests,
        RankedPrunerTests as RankedPrunerTests,
    )
    from prunekit.testing.ranked_structures import RankedStructureTests as RankedStructureTests
    from prunekit.testing.rates import (
        LRSchedulerTests as LRSchedulerTests,
        optimizer_of as optimizer_of,
        rates_by_epoch as rates_by_epoch,
        rates_by_step as rates_by_step,
    )
    from prunekit.testing.tiny import ConvNet as ConvNet, TinyNet as TinyNet, application as application

_HOMES = {
    "card": "epochs_under_card",
    "check": "LAWS check_component",
    "laws": "LawsBroken Report",
    "masks": "groups_gone weights_model",
    "ranked": "RankedCountTests RankedOrderTests RankedPrunerTests",
    "ranked_structures": "RankedStructureTests",
    "rates": "LRSchedulerTests optimizer_of rates_by_epoch rates_by_step",
    "tiny": "ConvNet TinyNet application",
}
"""Where each name lives. It is imported when it is asked for: pytest loads this package at every start, and whoever
trains the tiny network has no pytest."""

__all__ = sorted(name for names in _HOMES.values() for name in names.split())


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names.split():
            return getattr(import_module(f"prunekit.testing.{module}"), name)
    raise AttributeError(f"module 'prunekit.testing' has no attribute {name!r}")
