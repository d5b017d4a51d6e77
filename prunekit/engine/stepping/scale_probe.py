"""Whether a loop that tells of gradients itself does so before a `GradScaler` has taken its scale out of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

_ALIKE = 1e-3
"""How near to a power of two, as a scaler's scale is, counts: sums in 32 bits are not exact."""


class ScaleProbe:
    """Compares one gradient when it is told of and when the optimizer steps: once in a run, since loops stay alike."""

    def __init__(self) -> None:
        self._done = False
        self._seen: tuple[Tensor, Tensor] | None = None

    def look(self, parameters: Iterable[Tensor]) -> None:
        """Gradients are told of."""
        for parameter in () if self._done else parameters:
            if (gradient := parameter.grad) is not None and not gradient.is_sparse:
                self._seen = parameter, gradient.detach().abs().sum()
                return

    def was_scaled(self) -> bool:
        """The optimizer steps: whether the gradient has been divided by a power of two meanwhile."""
        if self._seen is None:
            return False
        (parameter, before), self._seen = self._seen, None
        after = parameter.grad
        if after is None or not float(before) or not math.isfinite(float(before)):
            return False
        self._done = True
        return _is_scale(float(before) / max(float(after.detach().abs().sum()), 1e-300))


def _is_scale(ratio: float) -> bool:
    exponent = math.log2(ratio) if ratio else 0
    return exponent > 0.5 and abs(exponent - round(exponent)) < _ALIKE
