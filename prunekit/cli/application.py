"""`--app MODULE:FUNCTION` -> an Application, and what is there where the name is wrong."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prunekit.cli.console import FAILED, print_error, print_traceback, usage_error
from prunekit.errors import ApplicationError, nearest, shortened

if TYPE_CHECKING:
    from prunekit.training.application import Application


def load_application(spec: str, seed: int) -> Application:
    """Import the module (the current directory is importable), call the function, with `seed=` if it takes it.

    Raises:
        SystemExit: there is no such module or function, or it gives no Application; what is there has been said.
    """
    from prunekit.training.application import Application
    from prunekit.training.checkpoint import seed_everything
    from prunekit.training.complaints import must_fit_together

    function = _function(spec)
    arguments = {"seed": seed} if "seed" in inspect.signature(function).parameters else {}
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise usage_error(f"--app: {spec!r} can't be called with {_call(arguments)}: {error}") from None
    # Before the call, since weights are drawn when the model is made.
    seed_everything(seed)
    try:
        application = function(**arguments)
    except Exception as error:
        raise _failed(f"{spec!r} failed", error) from error
    if not isinstance(application, Application):
        raise usage_error(f"--app: {spec!r} must return prunekit.Application, got {shortened(application, 80)}")
    try:
        must_fit_together(application)
    except ApplicationError as error:
        print_error(complaint_about(spec, error))
        raise SystemExit(FAILED) from None
    return application


def complaint_about(spec: str, error: ApplicationError) -> str:
    """What is wrong with an application, by its name; where nothing is known of the place, its function is that."""
    from prunekit.training.complaints import place_of

    error.application, error.place = f"application {spec!r}", error.place or place_of(_function(spec))
    return f"error: {error}"


def _function(spec: str) -> Callable[..., Any]:
    name, colon, attribute = spec.partition(":")
    if not (name and colon and attribute):
        raise usage_error(f"--app: expected MODULE:FUNCTION, got {spec!r}")
    module = _module(name)
    function = getattr(module, attribute, None)
    if function is None:
        raise usage_error(
            f"--app: module {name!r} has no function {attribute!r}{_known(attribute, _functions(module))}"
        )
    if not callable(function):
        raise usage_error(f"--app: {spec!r} is no function but {shortened(function, 80)}")
    checked: Callable[..., Any] = function
    return checked


def _module(name: str) -> ModuleType:
    here = str(Path.cwd())
    # For an installed script Python puts the script's folder there, not the current one.
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The module is there, and something that it imports is not.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(f"module {name!r} can't be imported", error) from error
        missing = error.name
    except Exception as error:
        raise _failed(f"module {name!r} can't be imported", error) from error
    raise usage_error(f"--app: no module {missing!r}{_known(missing, _modules(missing.rpartition('.')[0]))}")


def _failed(what: str, error: Exception) -> SystemExit:
    from prunekit.training.complaints import in_one_line, own_frame

    print_traceback()
    parts = own_frame(error), f"--app: {what}", in_one_line(error)
    return usage_error(": ".join(part for part in parts if part))


def _modules(package: str) -> Iterable[str]:
    """The modules in a package, or, without one, in the current directory."""
    if not package:
        return [module.name for module in pkgutil.iter_modules([str(Path.cwd())])]
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return [module.name for module in pkgutil.iter_modules(places or [], prefix=f"{package}.")]


def _functions(module: ModuleType) -> list[str]:
    """The public functions that a module defines itself."""
    functions = inspect.getmembers(module, inspect.isfunction)
    return [name for name, function in functions if function.__module__ == module.__name__ and name[0] != "_"]


def _known(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known: the nearest one, and all of them."""
    names = sorted(known)
    hint = "; " + "".join(f"did you mean {name!r}? " for name in nearest(word, names))
    return f"{hint}known are {', '.join(names) or 'none'}"


def _call(arguments: dict[str, Any]) -> str:
    return "seed= alone" if arguments else "no arguments"
