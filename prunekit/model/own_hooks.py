"""Hooks that stay with the module they were put on: a copy of it, or one from a pickle, does not have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.hooks import RemovableHandle


@dataclass(eq=False)
class OwnHook:
    """A hook on one module alone.

    torch copies and pickles hooks with their module, and whoever made this one knows nothing of the copy, which has
    `silent` in its place: there it can't be left out.
    """

    hook: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.hook(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return silent

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _make_silent, ()


def silent(*args: Any, **kwargs: Any) -> None:
    """A hook that does nothing."""


def keep_to_module(handle: RemovableHandle) -> RemovableHandle:
    """Let the hook of this handle stay behind when its module is copied."""
    hooks = handle.hooks_dict_ref()
    if hooks is not None and handle.id in hooks:
        hooks[handle.id] = OwnHook(hooks[handle.id])
    return handle


def _make_silent() -> Callable[..., None]:
    return silent
