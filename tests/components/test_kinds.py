"""The kinds of components: one object each, from which the language, the entry points and the policies follow."""

from __future__ import annotations

import pytest

from prunekit.components.arguments import arguments_of
from prunekit.components.kinds import EXTENSION, KINDS, LR_SCHEDULER, PRUNER, QUANTIZER, REGULARIZER
from prunekit.engine.policies import POLICIES


def test_every_kind_has_its_section_its_group_and_its_class_of_policies() -> None:
    assert {name: (kind.section, kind.group, POLICIES[name].__name__) for name, kind in KINDS.items()} == {
        "pruner": ("pruners", "prunekit.pruners", "PruningPolicy"),
        "regularizer": ("regularizers", "prunekit.regularizers", "RegularizationPolicy"),
        "quantizer": ("quantizers", "prunekit.quantizers", "QuantizationPolicy"),
        "lr_scheduler": ("lr_schedulers", "prunekit.lr_schedulers", "LRPolicy"),
        "extension": ("extensions", "prunekit.extensions", "HookPolicy"),
    }
    assert set(POLICIES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_a_class_of_policies_knows_its_kind(kind: object) -> None:
    assert POLICIES[str(kind)].kind is kind


def test_what_the_rules_of_a_schedule_ask_of_a_kind() -> None:
    assert [kind for kind in KINDS.values() if kind.owns_parameters] == [PRUNER, REGULARIZER, QUANTIZER]
    assert [kind for kind in KINDS.values() if kind.arguments] == [PRUNER, REGULARIZER, LR_SCHEDULER]
    assert {kind.name: kind.exclusive for kind in KINDS.values() if kind.exclusive} == {
        "pruner": "prunes",
        "quantizer": "quantizes",
        "lr_scheduler": "sets the learning rate",
    }
    assert [kind.described for kind in (QUANTIZER, LR_SCHEDULER, EXTENSION)] == [
        *["a quantizer", "an lr_scheduler", "an extension"]
    ]


def test_what_prunekit_supplies_is_no_key_of_a_schedule() -> None:
    class Rate:
        def __init__(self, optimizer: object, gamma: float, last_epoch: int = -1) -> None: ...

    assert [argument.name for argument in arguments_of(Rate, "lr_scheduler")] == ["gamma"]
    assert [argument.name for argument in arguments_of(Rate, "pruner")] == ["optimizer", "gamma", "last_epoch"]
