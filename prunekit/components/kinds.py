"""The kinds of components: all that the rest must know of each, in one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunekit.components.learning_rate import LRSchedulerArguments
from prunekit.components.pruner import PrunerArguments
from prunekit.components.regularizer import RegularizerArguments


@dataclass(frozen=True)
class Kind:
    """A kind of component. A new one is such an object, the protocol of its components, and the class of its policies.

    Attributes:
        name: as policies in a schedule spell it.
        section: of a schedule, where its components stand.
        methods: what a class must have to be one.
        article: before the name, in messages.
        arguments: what a policy's `args` may say, as the fields of a dataclass; None where it takes no `args`.
        supplied: arguments of the constructor that prunekit gives itself; all others are keys of the schedule.
        owns_parameters: it decides about the parameters that its arguments select, and about no others.
        exclusive: what no two policies may do in one epoch (to one parameter, where it owns any); empty where they may.
        decides_length: where nobody says how long a run is, it lasts to the end of the last such policy.
    """

    name: str
    section: str
    methods: tuple[str, ...] = ()
    article: str = "a"
    arguments: type | None = None
    supplied: frozenset[str] = frozenset()
    owns_parameters: bool = False
    exclusive: str = ""
    decides_length: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def group(self) -> str:
        """The group of entry points under which distributions offer such components."""
        return f"prunekit.{self.section}"

    @property
    def described(self) -> str:
        """The name with its article.

        >>> EXTENSION.described
        'an extension'
        """
        return f"{self.article} {self.name}"


PRUNER = Kind(
    "pruner",
    "pruners",
    ("compute_masks",),
    arguments=PrunerArguments,
    owns_parameters=True,
    exclusive="prunes",
    decides_length=True,
)
REGULARIZER = Kind(
    "regularizer",
    "regularizers",
    ("penalty",),
    arguments=RegularizerArguments,
    owns_parameters=True,
    decides_length=True,
)
QUANTIZER = Kind(
    "quantizer",
    "quantizers",
    ("quantize",),
    owns_parameters=True,
    exclusive="quantizes",
    decides_length=True,
)
LR_SCHEDULER = Kind(
    "lr_scheduler",
    "lr_schedulers",
    ("step",),
    article="an",
    arguments=LRSchedulerArguments,
    supplied=frozenset({"optimizer", "last_epoch", "verbose"}),
    exclusive="sets the learning rate",
)
EXTENSION = Kind("extension", "extensions", article="an")

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (PRUNER, REGULARIZER, QUANTIZER, LR_SCHEDULER, EXTENSION)}
"""Every kind by its name, in the order of a schedule's sections."""
