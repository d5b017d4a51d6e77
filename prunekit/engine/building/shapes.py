"""Parameters that have no shape yet: nothing can be decided about them."""

from __future__ import annotations

from torch.nn.parameter import is_lazy

from prunekit.components.selecting import GivenSelector
from prunekit.engine.checked import GivenModel, Made
from prunekit.engine.problems import Problems
from prunekit.model.parameters import without_values


def with_shapes(
    chosen: dict[str, GivenSelector], made: Made, network: GivenModel, problems: Problems
) -> dict[str, GivenSelector]:
    """What selectors have chosen but parameters of lazy layers that have not run yet, each of which is said."""
    lazy = {name: network.parameters.by_name[name] for name in chosen if is_lazy(network.parameters.by_name[name])}
    for name, parameter in lazy.items():
        selector = chosen[name]
        message = f"{name!r} {without_values(parameter)}"
        problems.add(made.place(selector.key), message, key=selector.in_mapping)
    return {name: selector for name, selector in chosen.items() if name not in lazy}
