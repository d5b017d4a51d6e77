"""All that schedules name beside components, by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.components.curves import CURVE
from prunekit.components.named_kind import NamedKind
from prunekit.pruning.granularity import GRANULARITY
from prunekit.pruning.rankings import RANKING

NAMED_KINDS: Mapping[str, NamedKind[Any]] = {kind.name: kind for kind in (CURVE, GRANULARITY, RANKING)}
"""Every kind of such things by its name."""
