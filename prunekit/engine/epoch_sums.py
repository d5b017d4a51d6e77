"""What is told once an epoch, because it comes with each mini-batch: terms of the loss, and weights that are zeroed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from prunekit.components.effects import Announcement, Effect
from prunekit.components.loss_term import LossTerm
from prunekit.components.origin import MaskChange, Origin
from prunekit.model.masks import Masks

_Key = tuple[Origin, str, type[Effect]]


class EpochSums:
    """Loss terms summed up without waiting for the device, and the sparsities before a parameter was first zeroed.

    Attributes:
        trained_on: a loss with all terms has been gone backward from.
    """

    def __init__(self) -> None:
        self._terms: dict[str, Tensor] = {}
        self._minibatches = 0
        self.trained_on = False
        self._before: dict[_Key, dict[str, float]] = {}

    def count_minibatch(self) -> None:
        """One more, for the means."""
        self._minibatches += 1

    def add(self, term: LossTerm) -> None:
        """A term that is added to the loss of this mini-batch."""
        value, total = term.value.detach(), self._terms.get(term.name)
        # Not in place: the first value is the term's own tensor, through which gradients still flow.
        self._terms[term.name] = value if total is None else total + value

    def watch(self, loss: Tensor) -> None:
        """See whether a loss with all terms is gone backward from: until one is, since it is asked of an epoch."""
        if not loss.requires_grad:
            self.trained_on = True  # as far as can be seen
        elif not self.trained_on:
            loss.register_hook(self._see)  # type: ignore[no-untyped-call]

    def _see(self, _: Tensor) -> None:
        self.trained_on = True

    def means(self) -> dict[str, float]:
        """Each term's mean over the mini-batches."""
        return {name: float(total) / self._minibatches for name, total in self._terms.items()}

    def expect(self, effect: Effect, origin: Origin, hook: str, masks: Masks) -> None:
        """An effect is about to be carried out, maybe for the first time in the epoch."""
        before = self._before.setdefault((origin, hook, type(effect)), {})
        for name in effect.parameters:
            # Once an epoch, since counting waits for the device.
            if name not in before:
                before[name] = masks.sparsity(name)

    def told(self, masks: Masks) -> Iterator[tuple[Origin, str, Announcement]]:
        """By whose hand, in which hook, and what became of the parameters since."""
        for (origin, hook, effect), before in self._before.items():
            changes = [MaskChange(name, was, masks.sparsity(name), origin) for name, was in before.items()]
            if changes:
                yield origin, hook, effect.summed_up(changes)

    def remember(self) -> Callable[[], None]:
        """How to forget what is expected from now on."""
        before = {key: dict(sparsities) for key, sparsities in self._before.items()}

        def restore() -> None:
            self._before = before

        return restore
