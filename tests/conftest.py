"""One torch thread: more of them on a busy machine make small training many times slower."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from prunekit.trace import Trace
from tests.trace_page import LINES_OF_THE_PAGE

torch.set_num_threads(1)


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
