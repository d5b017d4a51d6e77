"""The kinds of components, each with its section of the schedule."""

from __future__ import annotations

from typing import Literal

Kind = Literal["pruner", "regularizer", "quantizer", "lr_scheduler", "extension"]
SECTIONS: dict[str, Kind] = {
    "pruners": "pruner",
    "regularizers": "regularizer",
    "quantizers": "quantizer",
    "lr_schedulers": "lr_scheduler",
    "extensions": "extension",
}
"""The schedule's section of each kind of component, in the order in which they are written."""
