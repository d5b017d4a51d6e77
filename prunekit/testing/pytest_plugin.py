"""`pytest --prunekit-component NAME`: one test for each law. Nothing but pytest is imported until that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from prunekit.testing.laws import Failure, Law
    from prunekit.testing.subject import Subject

# They assert outside of test files, where pytest shows what failed only if it is told so before they are imported.
pytest.register_assert_rewrite(
    "prunekit.testing.ranked", "prunekit.testing.ranked_structures", "prunekit.testing.rates"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options."""
    group = parser.getgroup("prunekit", "laws of prunekit's components")
    group.addoption(
        "--prunekit-component",
        action="append",
        default=[],
        metavar="NAME",
        help="try every law on this component or listener: a name, distribution:name, or module:Class; may be repeated",
    )
    group.addoption(
        "--prunekit-arguments",
        default="",
        metavar="YAML",
        help="the keys that it is made with, such as 'sparsity: 0.5'; made up from its types by default",
    )


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Where no file is named, the laws are all there is to run."""
    return True if _alone(config) else None


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the laws."""
    for name in config.getoption("--prunekit-component"):
        items.extend(_items(session, name, config.getoption("--prunekit-arguments")))


class LawItem(pytest.Item):
    """A law and the component that it is tried on."""

    def __init__(self, *, law: Law, subject: Subject, **more: Any) -> None:
        super().__init__(**more)
        self.law, self.subject = law, subject

    def runtest(self) -> None:
        """Try it."""
        from prunekit.testing.check import try_law
        from prunekit.testing.laws import NotApplicable

        try:
            failure = try_law(self.law, self.subject)
        except NotApplicable as reason:
            pytest.skip(str(reason))
        if failure is not None:
            raise _LawBroken(failure)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The failure as it is told, without the kit's own traceback."""
        error = excinfo.value
        return str(error.failure) if isinstance(error, _LawBroken) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Which law of which component."""
        return self.path, None, f"{self.subject.name}: {self.law.sentence}"


class _LawBroken(AssertionError):
    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


def _items(session: pytest.Session, name: str, arguments: str) -> Iterator[pytest.Item]:
    from prunekit.errors import PrunekitError
    from prunekit.schedule.yaml_source import Source
    from prunekit.testing.check import laws_of
    from prunekit.testing.subject import find_subject

    try:
        given = Source.from_text(arguments, "--prunekit-arguments").data if arguments else {}
        if not isinstance(given, dict):
            raise PrunekitError(f"--prunekit-arguments must be a mapping of keys to values, got {arguments!r}")
        subject = find_subject(name, None, given)
    except PrunekitError as error:
        raise pytest.UsageError(str(error)) from error
    for law in laws_of(subject):
        yield LawItem.from_parent(session, name=f"{subject.name}::{law.name}", law=law, subject=subject)


def _alone(config: pytest.Config) -> bool:
    return bool(config.getoption("--prunekit-component")) and not config.option.file_or_dir
