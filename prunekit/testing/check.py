"""Every law that applies to a component, tried, and what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from prunekit.errors import PrunekitError, did_you_mean
from prunekit.testing import constructor_laws, growth_laws, mask_laws, named_laws, process_laws, run_laws, time_laws
from prunekit.testing.laws import LISTENER, Broken, Failure, Law, LawsBroken, NotApplicable, Report, traceback_of
from prunekit.testing.subject import Subject, find_subject

_BOOKS = (constructor_laws, mask_laws, run_laws, time_laws, process_laws, growth_laws, named_laws)
_ALL = [law for book in _BOOKS for law in vars(book).values() if isinstance(law, Law)]
# Basic ones first: False sorts before True, and `sorted` keeps the order of the rest.
LAWS = {law.name: law for law in sorted(_ALL, key=lambda law: not law.basic)}
"""Every law by its name, in the order in which they are tried."""


def check_component(
    component: Any, *, kind: str | None = None, laws: Iterable[str] | None = None, **arguments: Any
) -> Report:
    """Try every law of its kind on a component, on a curve, granularity or ranking, or on a listener.

    Args:
        component: a class, or the name that it is registered under; of a listener also its module or object; a curve or
            the like itself, with its `kind`.
        kind: `pruner`, `regularizer`, …, `curve`, …, `listener`, where the name or the class leaves it open.
        laws: the names of the laws to try; all by default.
        arguments: the YAML keys that instances are made with, in terms of `prunekit.testing.TinyNet`'s parameters. By
            default something is made up from the types for those that have no default.

    Raises:
        LawsBroken: an AssertionError with each broken law: what it says, expected, got, and how to see it again.
        PluginError: there is no such component, or it can't be made with these arguments.
    """
    subject = find_subject(component, kind, arguments)
    kept: list[str] = []
    broken: list[Failure] = []
    not_applicable: dict[str, str] = {}
    for law in laws_of(subject, laws):
        basis = [failure.law.name for failure in broken if failure.law.basic]
        try:
            if basis:
                raise NotApplicable(f"not tried: {basis[0]} is broken")
            failure = try_law(law, subject)
        except NotApplicable as reason:
            not_applicable[law.name] = str(reason)
            continue
        if failure is None:
            kept.append(law.name)
        else:
            broken.append(failure)
    report = Report(subject.name, tuple(kept), tuple(broken), not_applicable)
    if broken:
        raise LawsBroken(report)
    return report


def laws_of(subject: Subject, names: Iterable[str] | None = None) -> Iterator[Law]:
    """The laws of a subject's kind, or those of them that are named.

    Raises:
        PrunekitError: no law has one of these names.
    """
    for name in names or ():
        if name not in LAWS:
            raise PrunekitError(f"no law is called {name!r}{did_you_mean(name, LAWS)}")
    chosen = None if names is None else set(names)
    for law in LAWS.values():
        if subject.kind in law.kinds and (chosen is None or law.name in chosen):
            yield law


def try_law(law: Law, subject: Subject) -> Failure | None:
    """How a law is broken, or None.

    Raises:
        NotApplicable: it has nothing to say about this subject.
    """
    try:
        with _somewhere_to_write(subject) as subject:
            law.test(subject)
    except NotApplicable:
        raise
    except Broken as broken:
        raised = broken.traceback or (traceback_of(broken.__cause__) if broken.__cause__ else "")
        return Failure(law, broken.expected, broken.got, subject.reproduction(law.name), raised)
    except Exception as error:
        got = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        return Failure(law, "no exception", got, subject.reproduction(law.name), traceback_of(error))
    return None


@contextmanager
def _somewhere_to_write(subject: Subject) -> Iterator[Subject]:
    """A listener may write into the folders of its runs, which are gone once the law has been tried."""
    if subject.kind != LISTENER:
        yield subject
        return
    with tempfile.TemporaryDirectory(prefix="prunekit-", ignore_cleanup_errors=True) as folder:
        yield replace(subject, folder=folder)
