"""What a forward pass mentions, read from its bytecode without running it.

Tracing every forward pass would not do in its place, for two reasons. Many can't be traced: those of a detector, of
`DataParallel`, of a compiled model. Only its code says whether such a module hides an activation, which is reported, or
only hands on to its children. And tracing runs the code of the model, which may print, count in a list or start a
process; what mentions nothing that is looked for need not be run.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch.nn import Module

from prunekit.model.layers import QUANTIZABLE_ACTIVATIONS, SUM

_ACTIVATION_FUNCTIONS = [function for activation in QUANTIZABLE_ACTIVATIONS for function in activation.functions]
_ACTIVATION_NAMES = {name for activation in QUANTIZABLE_ACTIVATIONS for name in activation.function_names}


class Mentions(NamedTuple):
    """What the code of a forward pass may do.

    Attributes:
        activations: run an activation function that can be quantized.
        sums: add something to something, be it tensors or not.
    """

    activations: bool
    sums: bool


def mentions(cls: type[Module]) -> Mentions:
    """What the forward pass of a class mentions, in its own code and in that of the functions and methods it names."""
    reached = list(_reached(cls.forward, cls, set()))
    activations = any(_names_activation(code) or _knows_activation(names) for code, names in reached)
    return Mentions(activations, any(_adds(code) for code, _ in reached))


def _reached(function: Any, cls: type, seen: set[int]) -> Iterator[tuple[CodeType, list[Any]]]:
    """The code of a function, and of what it names, each with what its names stand for.

    torch's own functions are named and not looked into.
    """
    # A decorator such as `torch.no_grad` leaves a wrapper, whose own code mentions nothing.
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType) or id(function) in seen:
        return
    seen.add(id(function))
    for code in _with_inner(function.__code__):
        # `co_names` holds globals and attributes alike: functions of the module and methods of the class.
        named = [function.__globals__.get(name, getattr(cls, name, None)) for name in code.co_names]
        yield code, named
        for one in named:
            if isinstance(one, FunctionType) and not one.__module__.startswith("torch."):
                yield from _reached(one, cls, seen)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    """Code, and the code of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def _knows_activation(named: list[Any]) -> bool:
    """Whether one of these is an activation function, under whatever name it was imported."""
    return any(one is function for one in named for function in _ACTIVATION_FUNCTIONS)


def _names_activation(code: CodeType) -> bool:
    """Whether code asks something else than `self` for a function called `relu`.

    Modules that happen to be called `self.relu` do not count: they are found by themselves.
    """
    previous = None
    for instruction in dis.get_instructions(code):
        if isinstance(instruction.argval, str) and instruction.argval in _ACTIVATION_NAMES:
            # Which LOAD_FAST it is depends on Python's version; one may load two variables, with a tuple as its argval.
            of_self = previous is not None and "FAST" in previous.opname and "self" in str(previous.argval)
            if not of_self:
                return True
        previous = instruction
    return False


def _adds(code: CodeType) -> bool:
    # The argval of BINARY_OP is a number that Python may give another meaning; its argrepr is the sign.
    found = [(one.opname, one.argrepr, one.argval) for one in dis.get_instructions(code)]
    return any(
        (name == "BINARY_OP" and sign in ("+", "+=")) or (isinstance(value, str) and value in SUM.methods)
        for name, sign, value in found
    )
