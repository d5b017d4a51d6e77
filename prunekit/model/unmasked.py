"""Weights that were set aside while the forward pass sees them masked or scaled."""

from __future__ import annotations

from torch import Tensor

from prunekit.model.parameter_mask import ParameterMask


class Unmasked:
    """One parameter's weights as they were; made when the masked ones are in their place."""

    def __init__(self, entry: ParameterMask, weights: Tensor) -> None:
        self._entry, self._parameter, self._weights = entry, entry.parameter, weights
        self._version, self._address = self._parameter._version, self._parameter.data_ptr()

    def put_back(self) -> None:
        """Put the weights back, unless somebody has given the parameter others since: a load is not undone."""
        if not self._has_new_values():
            self._parameter.detach().copy_(self._weights)

    def _has_new_values(self) -> bool:
        if self._parameter._version != self._version:
            return True
        # Assigning to `.data` counts no version. What is still masked there are the same values, moved or converted.
        moved = self._address != self._parameter.data_ptr()
        return moved and bool(self._parameter.detach()[~self._entry.mask.to(self._parameter.device)].any())
