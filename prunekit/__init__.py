"""prunekit: compress a PyTorch network while it trains, under a schedule that says what to do and when."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The names of `prunekit.api` come when the first is asked for: `prunekit --help` and `pytest` need no torch.
    # Python's own machinery asks for many of these (`__path__`, say), which must not import torch either.
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
    public = _public()
    if name == "__all__":
        return sorted(public)
    if name not in public:
        raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
    value = globals()[name] = public[name]
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_public()})


def _public() -> dict[str, Any]:
    names = vars(import_module("prunekit.api"))
    return {name: value for name, value in names.items() if name.isidentifier() and name[0] != "_"}
