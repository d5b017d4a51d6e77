"""What holds for every test, wherever it lies; a test takes a small part of a second, so what all of them share counts.

One torch thread: more of them on a busy machine make small training many times slower.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from prunekit.plugins import loading, registry
from prunekit.trace import Trace
from tests.trace_page import LINES_OF_THE_PAGE

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def what_has_been_imported_is_no_garbage() -> None:
    """A test that asks for a collection looks through what tests have made, and not through torch and all of pytest."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def what_is_installed_is_looked_up_once() -> Iterator[None]:
    """Reading all metadata anew for each scheduler took half of all time; where a test has its own path it is read."""
    path = list(sys.path)

    def remembered(look_up: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
        found: list[Any] = []

        def offers() -> list[Any]:
            if sys.path != path:
                return look_up()
            found[:] = found or look_up()
            return list(found)

        return offers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "named_offers", remembered(registry.named_offers))
        patch.setattr(loading, "listener_offers", remembered(loading.listener_offers))
        yield


@pytest.fixture(autouse=True, scope="session")
def every_line_has_the_level_and_the_keys_that_the_page_says() -> Iterator[None]:
    """Of every trace that any test leaves: most lines come in one test only."""
    log = Trace._log

    def checked(self: Trace, level: Any, event: str, values: dict[str, Any]) -> None:
        levels, keys = LINES_OF_THE_PAGE.get(event, (level, set(values)))
        written = {"exception" if key == "exc_info" else key for key in values}
        assert level in levels.split("; "), f"the line {event!r} has level {level}, and the page says {levels}"
        assert written <= keys, f"the line {event!r} has {sorted(written - keys)}, which the page does not know"
        log(self, level, event, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trace, "_log", checked)
        yield
