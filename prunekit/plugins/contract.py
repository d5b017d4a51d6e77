"""What a class must be to be a component of its kind: methods, arguments that select parameters, hooks that exist."""

from __future__ import annotations

from prunekit.components.kinds import KINDS
from prunekit.components.selecting import selecting_arguments
from prunekit.errors import PluginError
from prunekit.hookspecs import offer
from prunekit.plugins.entry_points import LISTENERS
from prunekit.plugins.hooks import HOOKS, hook_names
from prunekit.plugins.registry import Found
from prunekit.quantization.quantizable import QuantizesModules


def must_be_component(found: Found, kind: str, name: str) -> None:
    """Whether a class is a component of its kind, with hooks that exist.

    Raises:
        PluginError: it is not; the message names its distribution and the kind that it looks like.
    """
    missing = [method for method in KINDS[kind].methods if not callable(getattr(found.cls, method, None))]
    if missing:
        alike = [k for k in KINDS.values() if k.methods and all(hasattr(found.cls, m) for m in k.methods)]
        hint = f"; it looks like {alike[0].described}: the group for those is {alike[0].group!r}" if alike else ""
        raise PluginError(f"{name!r} of {found.distribution} is no {kind}: it has no {missing[0]}(){hint}")
    owns = KINDS[kind].owns_parameters and not issubclass(found.cls, QuantizesModules)
    if owns and not selecting_arguments(found.cls, kind):
        what = "no argument of its constructor selects parameters; one must be of type Selectors or PerParameter"
        raise PluginError(f"{name!r} of {found.distribution} is no {kind}: {what}")
    for hook in hook_names(found.cls, found.distribution):
        if HOOKS[hook] is offer:  # asked before any component is made
            what = f"a component is never asked: {hook} belongs in a listener (group {LISTENERS!r})"
            raise PluginError(f"{name!r} of {found.distribution} implements {hook}, and {what}")
