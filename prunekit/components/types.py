"""Types for the arguments of constructors, which are the keys of a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

Sparsity = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A fraction of zeros, from 0 to 1."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number that is not negative."""
Selectors = str | list[str]
"""Which parameters: one exact name, glob or `re:` pattern, or several."""
Targets = Sequence[str] | Mapping[str, Any]
"""Selectors of parameters; in a mapping each comes with its setting."""
