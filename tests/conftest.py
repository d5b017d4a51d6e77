"""What holds for every test (`tests/every_test.py`)."""

from tests.every_test import (  # noqa: F401
    every_line_has_the_level_and_the_keys_that_the_page_says,
    what_has_been_imported_is_no_garbage,
    what_is_installed_is_looked_up_once,
)
