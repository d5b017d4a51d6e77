"""What a function may call, read from its code: whether it is worth tracing at all."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from prunekit.model.forward_trace import ACTIVATION_FUNCTIONS, ACTIVATION_METHODS, SUM_METHODS

_WORDS = frozenset((*ACTIVATION_METHODS, "relu6"))


def reached_code(function: Any, cls: type, seen: set[int]) -> Iterator[tuple[CodeType, list[Any]]]:
    """The code of a function, and of the functions and methods that it names, each with what it may call.

    torch's own functions are named and not looked into.
    """
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType) or id(function) in seen:
        return
    seen.add(id(function))
    for code in _codes(function.__code__):
        called = [function.__globals__.get(name, getattr(cls, name, None)) for name in code.co_names]
        yield code, called
        for one in called:
            if isinstance(one, FunctionType) and not one.__module__.startswith("torch."):
                yield from reached_code(one, cls, seen)


def calls_activation(code: CodeType, called: list[Any]) -> bool:
    """Whether code may call an activation function.

    Modules that happen to be called `self.relu` do not count: they are found by themselves.
    """
    return _names_activation(code) or any(one is known for one in called for known in ACTIVATION_FUNCTIONS)


def may_add(code: CodeType) -> bool:
    """Whether code adds something to something, be it tensors or not."""
    found = [
        (instruction.opname, instruction.argrepr, instruction.argval) for instruction in dis.get_instructions(code)
    ]
    return any(
        (name == "BINARY_OP" and sign in ("+", "+=")) or (isinstance(value, str) and value in SUM_METHODS)
        for name, sign, value in found
    )


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Code, and the code of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names_activation(code: CodeType) -> bool:
    """Whether code asks something else than `self` for a function called `relu`."""
    previous = None
    for instruction in dis.get_instructions(code):
        if isinstance(instruction.argval, str) and instruction.argval in _WORDS:
            of_self = previous is not None and "FAST" in previous.opname and "self" in str(previous.argval)
            if not of_self:
                return True
        previous = instruction
    return False
