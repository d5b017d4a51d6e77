"""What hook implementations return: effects on a network, each of them whole in one class.

Long on purpose: an effect is found, and another one added, here alone; `prunekit.components` offers its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from prunekit.components.origin import MaskChange, Origin
from prunekit.errors import PluginError, shortened
from prunekit.model.known_optimizers import KnownOptimizers
from prunekit.model.masks import Masks
from prunekit.model.optimizer import current_groups, learning_rates, must_fit_groups, set_groups
from prunekit.model.optimizer_state import WeightState
from prunekit.trace import Level


@dataclass(frozen=True)
class Network:
    """What effects may touch: masks, the weights under them, and the optimizers."""

    masks: Masks
    optimizers: KnownOptimizers

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """All that could have a mask, by name."""
        return self.masks.parameters


@dataclass(frozen=True)
class Announcement:
    """What is told of an effect: a line of the trace, and the hook in which listeners hear of it.

    Attributes:
        event: the line's message.
        values: what the line says besides whose effect it is, and when.
        level: of the line.
        hook: in which listeners hear of it, with `arguments` and the progress; none where empty.
        changes: what became of masks, to keep account of.
    """

    event: str
    values: Mapping[str, Any]
    level: Level = "info"
    hook: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[MaskChange] = ()


class Effect(ABC):
    """Something that a hook implementation wants done, once all implementations of the event have returned.

    All of an event's effects are checked (`must_fit`), then made ready (`prepare`), then carried out in their order.
    Only prunekit has effects: what any of them touches it must be able to veto, to tell and to undo.
    """

    @property
    def parameters(self) -> Sequence[str]:
        """The parameters whose masks or weights it changes: they are put back where a listener fails over it."""
        return ()

    @property
    def heard_in(self) -> str:
        """The hook in which listeners hear of it as it is carried out; empty where they do not."""
        return ""

    @property
    def proposed(self) -> Mapping[str, Tensor]:
        """Masks that somebody may veto."""
        return {}

    @property
    def falls_with_veto(self) -> bool:
        """Whether it is left undone where masks are vetoed that the same implementation proposed."""
        return bool(self.proposed)

    @property
    def is_summed_up(self) -> bool:
        """Whether it is told in one line at the end of the epoch, with what became of its `parameters` since."""
        return False

    @property
    def sets_rates(self) -> bool:
        """Whether it writes learning rates: they are the schedule's then."""
        return False

    def must_fit(self, network: Network) -> None:  # noqa: B027, most fit anything
        """Whether it can be carried out; nothing has been touched yet.

        Raises:
            PluginError: it can't be.
        """

    def remember(self, network: Network) -> Callable[[], None]:
        """How to put back what it touches besides `parameters`; asked only where listeners hear of an effect."""
        return lambda: None

    @abstractmethod
    def prepare(self, network: Network, origin: Origin) -> Iterator[Announcement]:
        """Take the memory that is needed, and touch nothing; iterating over what is returned does it, and tells.

        Weights and masks are changed by `network.masks` alone: with it what is masked stays zero. What an effect reads
        it reads while it is iterated over, because effects that come before it may have changed it.
        """

    @staticmethod
    def summed_up(changes: Sequence[MaskChange]) -> Announcement:
        """What is told of all of these at the end of an epoch."""
        raise NotImplementedError("an effect that is_summed_up must define summed_up()")

    def __str__(self) -> str:
        return " of ".join([type(self).__name__, *([", ".join(self.parameters)] if self.parameters else [])])

    def __init_subclass__(cls) -> None:
        if cls.__module__ != __name__:
            raise PluginError(
                f"{cls.__module__}.{cls.__qualname__} can't be an effect of its own: prunekit could neither veto it "
                f"nor undo it; return {', '.join(effect_names())}"
            )


def effect_names() -> list[str]:
    """The effects that a hook implementation may return."""
    return [effect.__name__ for effect in Effect.__subclasses__() if effect.__module__ == __name__]


@dataclass(frozen=True)
class SetMasks(Effect):
    """New masks for some parameters, in place of the ones their pruner set before.

    `forward_only`: masked in the forward pass, not after the optimizer's step. `double_copies`: the optimizer updates
    the unmasked weights. `left_out`: parameters that were asked about and keep the mask they have. `scales`: what the
    forward pass alone multiplies kept weights by. `reset_pruned`, `reset_regrown`: whether what optimizers remember of
    a weight, such as momentum, is set back where it is masked, or where it comes back.
    """

    masks: Mapping[str, Tensor]
    forward_only: bool = False
    double_copies: bool = False
    left_out: Sequence[str] = ()
    scales: Mapping[str, float] = field(default_factory=dict)
    reset_pruned: bool = False
    reset_regrown: bool = False

    @property
    def parameters(self) -> Sequence[str]:
        return tuple(self.masks)

    @property
    def heard_in(self) -> str:
        return "on_masks_changed"

    @property
    def proposed(self) -> Mapping[str, Tensor]:
        return self.masks

    def must_fit(self, network: Network) -> None:
        network.masks.must_be_masks(self.masks)
        for name, scale in self.scales.items():
            if not isinstance(scale, Real):
                raise PluginError(f"the scale of {name!r} must be a number, got {shortened(scale)}")

    def prepare(self, network: Network, origin: Origin) -> Iterator[Announcement]:
        flags = {"forward_only": self.forward_only, "double_copies": self.double_copies}
        changes = {
            name: network.masks.prepare_mask(name, mask, scale=self.scales.get(name, 1.0), **flags)
            for name, mask in self.masks.items()
        }
        return self._carry_out(changes, network, origin)

    def remember(self, network: Network) -> Callable[[], None]:
        resets = self.reset_pruned or self.reset_regrown
        undo = [state.snapshot() for state in self._states(network).values()] if resets else []

        def restore() -> None:
            for one in undo:
                one()

        return restore

    def _carry_out(self, changes: Mapping[str, _Change], network: Network, origin: Origin) -> Iterator[Announcement]:
        stale = self._stale(network)
        yield from _changed("masks changed", changes, origin)
        yield from self._reset(stale, network)
        if self.left_out:
            yield Announcement("nothing pruned", {"parameters": list(self.left_out)})

    def _states(self, network: Network) -> dict[str, WeightState]:
        known = list(network.optimizers)
        return {name: WeightState.of(network.parameters[name], known) for name in self.masks}

    def _stale(self, network: Network) -> dict[str, Tensor]:
        """Where what is remembered of weights is out of date once the masks are set."""
        stale: dict[str, Tensor] = {}
        for name, mask in self.masks.items():
            before = network.masks.get(name) if self.reset_regrown else None
            if before is not None:
                stale[name] = mask.to(before.device) & ~before
            if self.reset_pruned:
                stale[name] = ~mask | stale[name].to(mask.device) if name in stale else ~mask
        return stale

    def _reset(self, stale: Mapping[str, Tensor], network: Network) -> Iterator[Announcement]:
        states = {name: state for name, state in self._states(network).items() if name in stale} if stale else {}
        for name, state in states.items():
            state.reset(stale[name])
        if done := [name for name, state in states.items() if state.by_weight]:
            yield Announcement("optimizer state reset", {"parameters": done})
        left = {other for state in states.values() for other in state.others} - network.optimizers.state_left
        if left:
            network.optimizers.state_left |= left
            named = [f"{optimizer}: {key}" for optimizer, key in sorted(left)]
            yield Announcement("optimizer state left", {"state": named}, "warning")


@dataclass(frozen=True)
class TakeMasks(SetMasks):
    """Masks from elsewhere (`source`), which the user takes: nobody is asked, and no hook implementation returns it."""

    source: str = ""

    @property
    def proposed(self) -> Mapping[str, Tensor]:
        return {}

    def _carry_out(self, changes: Mapping[str, _Change], network: Network, origin: Origin) -> Iterator[Announcement]:
        for told in _changed("masks taken", changes, origin):
            yield replace(told, values={**told.values, "source": self.source})


@dataclass(frozen=True)
class SetWeights(Effect):
    """New values for some parameters; what is masked stays zero."""

    values: Mapping[str, Tensor]

    @property
    def parameters(self) -> Sequence[str]:
        return tuple(self.values)

    @property
    def falls_with_veto(self) -> bool:
        return True  # it makes up for what the masks take away

    def must_fit(self, network: Network) -> None:
        network.masks.must_be_values(self.values)

    def prepare(self, network: Network, origin: Origin) -> Iterator[Announcement]:
        return self._carry_out([network.masks.prepare_weights(name, value) for name, value in self.values.items()])

    def _carry_out(self, changes: Sequence[Callable[[], None]]) -> Iterator[Announcement]:
        for change in changes:
            change()
        if self.values:
            yield Announcement("weights set", {"parameters": list(self.values)})


@dataclass(frozen=True)
class KeepMasks(Effect):
    """From now on the masks of these parameters are enforced after every optimizer step."""

    names: Sequence[str]

    @property
    def parameters(self) -> Sequence[str]:
        return self.names

    @property
    def heard_in(self) -> str:
        return "on_masks_changed"

    def must_fit(self, network: Network) -> None:
        network.masks.must_be_names(self.names)

    def prepare(self, network: Network, origin: Origin) -> Iterator[Announcement]:
        # Which of them have masks is known only when the effects before this one are carried out.
        masks = network.masks
        kept = [MaskChange(name, *masks.keep(name), origin) for name in self.names if name in masks]
        if kept:
            yield _told("masks kept", kept)


@dataclass(frozen=True)
class DropMasks(Effect):
    """The masks of these parameters are forgotten; their weights stay as they are.

    `freed`: because nothing is to be pruned any more, and not for the time between two mini-batches.
    """

    names: Sequence[str]
    freed: bool = False

    @property
    def parameters(self) -> Sequence[str]:
        return self.names

    def must_fit(self, network: Network) -> None:
        network.masks.must_be_names(self.names)

    def prepare(self, network: Network, origin: Origin) -> Iterator[Announcement]:
        # As of `KeepMasks`: this is a generator, of which nothing runs before it is iterated over.
        dropped = [name for name in self.names if name in network.masks]
        for name in dropped:
            network.masks.drop(name)
        if dropped:
            told = {"parameters": dropped}
            yield Announcement("masks freed", told) if self.freed else Announcement("masks dropped", told, "debug")


@dataclass(frozen=True)
class ZeroWeights(Effect):
    """Weights to set to zero once (False zeroes); with `keep` the zeros stay, besides any pruner's mask."""

    masks: Mapping[str, Tensor]
    keep: bool = False

    @property
    def parameters(self) -> Sequence[str]:
        return tuple(self.masks)

    @property
    def heard_in(self) -> str:
        return "on_masks_changed" if self.keep else ""

    @property
    def is_summed_up(self) -> bool:
        return not self.keep  # it comes with each mini-batch

    def must_fit(self, network: Network) -> None:
        network.masks.must_be_masks(self.masks)

    def prepare(self, network: Network, origin: Origin) -> Iterator[Announcement]:
        if self.keep:
            kept = {name: network.masks.prepare_kept(name, mask) for name, mask in self.masks.items()}
            return _changed("masks kept", kept, origin)
        return self._carry_out([network.masks.prepare_zeros(name, mask) for name, mask in self.masks.items()])

    def _carry_out(self, changes: Sequence[Callable[[], None]]) -> Iterator[Announcement]:
        for change in changes:
            change()
        # It is told at the end of the epoch; this line only makes the method a generator.
        yield from ()

    @staticmethod
    def summed_up(changes: Sequence[MaskChange]) -> Announcement:
        return _told("weights zeroed", changes)


@dataclass(frozen=True)
class SetLearningRates(Effect):
    """New values for each parameter group of the optimizers that were given: `lr`, and what else a schedule cycles.

    `level`: of its line in the trace.
    """

    groups: Sequence[Mapping[str, Any]]
    level: Level = "info"

    @property
    def heard_in(self) -> str:
        return "on_learning_rate_changed"

    @property
    def sets_rates(self) -> bool:
        return True

    def must_fit(self, network: Network) -> None:
        must_fit_groups(self.groups, network.optimizers.groups)

    def remember(self, network: Network) -> Callable[[], None]:
        groups = network.optimizers.groups
        values = current_groups(groups)
        return lambda: set_groups(groups, values)

    def prepare(self, network: Network, origin: Origin) -> Iterator[Announcement]:
        groups = network.optimizers.groups
        # A generator too: nothing is touched before it is iterated over, and no memory is needed beforehand.
        before = learning_rates(groups)
        set_groups(groups, self.groups)
        after = learning_rates(groups)
        if after != before:
            rates = {"before": before, "after": after}
            yield Announcement(
                "learning rate changed", rates, self.level, hook="on_learning_rate_changed", arguments=rates
            )


@dataclass(frozen=True)
class ModulesQuantized(Effect):
    """A quantizer works on these modules from now on: name -> `weights`, `activations`, `bias` in bits, and `by`."""

    bits: Mapping[str, Mapping[str, int | str | None]]

    @property
    def heard_in(self) -> str:
        return "on_modules_quantized"

    def prepare(self, network: Network, origin: Origin) -> Iterator[Announcement]:
        yield Announcement(
            "modules quantized", {"bits": self.bits}, hook="on_modules_quantized", arguments={"bits": self.bits}
        )


_Change = Callable[[], tuple[float, float]]
"""Changes one parameter, and says its sparsity before and after."""


def _changed(event: str, changes: Mapping[str, _Change], origin: Origin) -> Iterator[Announcement]:
    done = [MaskChange(name, *change(), origin) for name, change in changes.items()]
    if done:
        yield _told(event, done)


def _told(event: str, changes: Sequence[MaskChange]) -> Announcement:
    sparsity = {change.parameter: [change.sparsity_before, change.sparsity_after] for change in changes}
    values, arguments = {"sparsity": sparsity}, {"changes": changes}
    return Announcement(event, values, hook="on_masks_changed", arguments=arguments, changes=changes)
