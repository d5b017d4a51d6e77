"""What is wrong with an application, in one line that names the place in its code."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from prunekit.errors import ApplicationError, PrunekitError, shortened
from prunekit.training.application import Application

_NOTE = "raised in the application's "
_FRAME = re.compile(r'File "(.+?)", line (\d+)')
_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")
_ROOTS = [*map(sysconfig.get_path, _PATHS), str(Path(torch.__file__).parent), str(Path(__file__).parents[1])]
_LIBRARIES = tuple(os.path.join(os.path.realpath(root), "") for root in _ROOTS)


@contextmanager
def blaming(part: str) -> Iterator[None]:
    """What is raised in here gets a note that says in which part of the application it was."""
    try:
        yield
    except Exception as error:
        # A plugin's hook within the forward pass has been blamed already.
        if not any(note.startswith("raised in ") for note in getattr(error, "__notes__", ())):
            error.add_note(f"{_NOTE}{part}")
        raise


def complaint(error: Exception) -> ApplicationError | None:
    """An exception of the application's own code in one line; None where it comes from elsewhere."""
    if isinstance(error, ApplicationError):
        return error
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(_NOTE)]
    if not notes or isinstance(error, PrunekitError):
        return None
    return ApplicationError(notes[0].removeprefix(_NOTE), in_one_line(error), own_frame(error))


def in_one_line(error: BaseException) -> str:
    """The name of an exception and what it says."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].startswith("Caught ") and "Original Traceback" in str(error):
        return lines[-1]  # a loader's worker process sends its traceback as text
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def own_frame(error: BaseException) -> str:
    """`file:line` of the innermost code that belongs to no library; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return _shown(error.filename, error.lineno or 0)
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    told = [(file, int(line)) for file, line in _FRAME.findall(str(error))]
    own = [frame for frame in (told or frames) if _is_own(frame[0])]
    return _shown(*own[-1]) if own else ""


def place_of(function: object) -> str:
    """`file:line` of a function or of the class of a callable object; empty where it belongs to a library."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    has_code = inspect.isfunction(function) or inspect.ismethod(function)
    code = getattr(function if has_code else type(function).__call__, "__code__", None)
    return _shown(code.co_filename, code.co_firstlineno) if code is not None and _is_own(code.co_filename) else ""


def _is_own(file: str) -> bool:
    return not file.startswith("<frozen") and not os.path.realpath(file).startswith(_LIBRARIES)


def _shown(file: str, line: int) -> str:
    path, here = Path(file), Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"


# Before training


def must_be_trainable(application: Application) -> None:
    """Whether a run can begin with an application, as far as can be told without a batch.

    Raises:
        ApplicationError: it can't.
    """
    must_fit_together(application)
    _must_have_a_loss(application)
    _must_have_loaders(application)
    _must_have_numbers(application)


def must_fit_together(application: Application) -> None:
    """Whether an application has a model and optimizers of that model: all that a schedule needs to be checked.

    Raises:
        ApplicationError: it has not.
    """
    _must_have_model(application.model)
    _must_have_optimizers(application)


def _must_have_model(model: object) -> None:
    if not isinstance(model, Module):
        raise ApplicationError("model", f"must be a torch.nn.Module, got {shortened(model)}")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ApplicationError("model", f"{name!r} is on the device 'meta': it has no values yet")


def _must_have_optimizers(application: Application) -> None:
    optimizers = application.optimizers
    if not optimizers:
        raise ApplicationError("optimizer", "there is none; give an optimizer, a sequence or a mapping of them")
    own = {id(parameter) for parameter in application.model.parameters()}
    for name, optimizer in optimizers.items():
        which = f"{name!r} " if len(optimizers) > 1 else ""
        groups, step = getattr(optimizer, "param_groups", None), getattr(optimizer, "step", None)
        if groups is None or not callable(step):
            what = f"{which}must be a torch.optim.Optimizer, or a sequence or a mapping of them"
            raise ApplicationError("optimizer", f"{what}, got {shortened(optimizer)}")
        if not any(id(parameter) in own for group in groups for parameter in group["params"]):
            what = f"{which}holds none of the model's parameters: it was made for another model, or for a copy"
            raise ApplicationError("optimizer", what)
        closure = inspect.signature(step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            what = f"{which}needs a closure ({type(optimizer).__name__}); call such an optimizer in a loop of your own"
            raise ApplicationError("optimizer", what)


def _must_have_a_loss(application: Application) -> None:
    forms = "loss(outputs, targets) or step(model, batch)"
    if application.loss is None and application.step is None:
        raise ApplicationError("loss", f"there is none; give {forms}")
    if application.loss is not None and application.step is not None:
        raise ApplicationError("step", f"is given beside loss; give {forms}, one of them", place_of(application.step))
    given: Mapping[str, object] = {"loss": application.loss, "step": application.step, "metrics": application.metrics}
    for part, function in given.items():
        if function is not None and not callable(function):
            raise ApplicationError(part, f"must be a function, got {shortened(function)}")


def _must_have_loaders(application: Application) -> None:
    for part in ("train_loader", "test_loader"):
        loader = getattr(application, part)
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise ApplicationError(part, f"must give batches, such as a DataLoader, got {shortened(loader)}")
        if hasattr(loader, "__next__"):
            what = f"must give its batches in every epoch, and a {type(loader).__name__} gives them once"
            raise ApplicationError(part, what)
    try:
        length = len(application.train_loader)  # type: ignore[arg-type]
    except TypeError as error:
        what = f"must have a length, by which an epoch is divided ({in_one_line(error)})"
        raise ApplicationError("train_loader", what) from error
    if not length:
        raise ApplicationError("train_loader", "is empty: there is nothing to train on")


def _must_have_numbers(application: Application) -> None:
    accumulate, clip, decay = application.accumulate, application.clip_norm, application.ema_decay
    kind = application.autocast
    wanted: Mapping[str, tuple[object, bool, str]] = {
        "accumulate": (accumulate, type(accumulate) is int and accumulate > 0, "a number of mini-batches, from 1"),
        "autocast": (
            kind,
            kind is None or (isinstance(kind, torch.dtype) and kind.is_floating_point),
            "a floating torch.dtype, such as torch.bfloat16",
        ),
        "clip_norm": (clip, clip is None or (_is_number(clip) and clip > 0), "a number above 0"),
        "ema_decay": (decay, decay is None or (_is_number(decay) and 0 <= decay < 1), "a number from 0 to below 1"),
    }
    for part, (got, is_right, right) in wanted.items():
        if not is_right:
            raise ApplicationError(part, f"must be {right}, got {got!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# What its functions give


def must_be_pair(batch: Any, loader: str) -> tuple[Any, Any]:
    """(inputs, targets) of a batch.

    Raises:
        ApplicationError: it is something else.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    what = f"gives {described(batch)}, and loss takes pairs (inputs, targets); give step(model, batch) in its place"
    raise ApplicationError(loader, what)


def must_be_scalar(value: object, part: str, function: Callable[..., Any] | None, name: str = "") -> Tensor:
    """A loss.

    Raises:
        ApplicationError: it is something else.
    """
    if isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point():
        return value
    scalars = "a scalar tensor" if part == "loss" or name else "a scalar tensor, or scalar tensors by name"
    what = f"must give {scalars}, got {described(value)}" + (f" as {name!r}" if name else "")
    raise ApplicationError(part, what, place_of(function))


def must_have_gradient(loss: Tensor, part: str, function: Callable[..., Any] | None, name: str = "") -> None:
    """Whether a loss can be trained on.

    Raises:
        ApplicationError: nothing that is trained has a part in it.
    """
    if not loss.requires_grad:
        which = f"{name!r} " if name else ""
        what = f"{which}has no gradient: it does not depend on any parameter that is trained, or was detached"
        raise ApplicationError(part, what, place_of(function))


def described(value: object) -> str:
    """What a value is, in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} ({str(value.dtype).removeprefix('torch.')})"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(repr, value)) or 'nothing'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return shortened(value)
