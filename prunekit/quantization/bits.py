"""How many bits each module gets: the language of quantizers, from defaults and overrides to a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunekit.components.context import Context
from prunekit.errors import ArgumentError, did_you_mean
from prunekit.model.names import without_wrappers
from prunekit.model.selectors import matches
from prunekit.quantization.quantizable import ModuleBits, Quantizable

Bits = Annotated[int, Field(ge=1, le=32)] | None
"""A number of bits; none, or 32, leaves alone."""
BitsKey = Literal["wts", "acts", "bias", "bits_weights", "bits_activations", "bits_bias"]
Overrides = dict[str, dict[BitsKey, Bits]]
"""Module name, glob or regular expression -> the bits that it gets in place of the quantizer's."""

_MEANS = {"wts": "bits_weights", "acts": "bits_activations", "bias": "bits_bias"}
_PARTS = {"bits_weights": "weights", "bits_activations": "activations", "bits_bias": "bias"}
_FLOAT = 32


@dataclass(kw_only=True)
class BitsQuantizer:
    """Gives every module its bits; a quantizer is a subclass with `quantize` and `quantize_activation`.

    Args:
        bits_activations: of what activations (ReLU, ReLU6) give, as modules or as functions; none leaves them alone.
        bits_weights: of the weights of linear layers, convolutions and embeddings; none leaves them alone.
        bits_bias: of their biases; none leaves them alone.
        bits_overrides: module name, glob or regular expression -> its own `wts`, `acts` and `bias`. A name that is
            equal comes first, then the first pattern that matches. `null` leaves alone; a key left out is as above.
        overrides: the same as `bits_overrides`, with `bits_weights`, `bits_activations` and `bits_bias`.
    """

    bits_activations: Bits = None
    bits_weights: Bits = None
    bits_bias: Bits = None
    bits_overrides: Overrides = field(default_factory=dict)
    overrides: Overrides = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.bits_overrides and self.overrides:
            raise ArgumentError("overrides", message="means the same as bits_overrides: give one of the two")
        for pattern, given in self._overrides.items():
            twice = [key for key in given if key in _MEANS and _MEANS[key] in given]
            if twice:
                where = (self._overrides_key, pattern, _MEANS[twice[0]])
                raise ArgumentError(*where, message=f"means the same as {twice[0]!r}: give one of the two")
        # A quantizer may have another parent with keys to check; the last of all is `object`, which checks none.
        getattr(super(), "__post_init__", lambda: None)()

    def bits(self, modules: Mapping[str, Quantizable]) -> Mapping[str, ModuleBits]:
        """The bits of every module that gets some."""
        chosen = {name: self._chosen(name) for name in modules}
        plan = {name: self._bits_of(modules[name], pattern) for name, pattern in chosen.items()}
        return {name: bits for name, bits in plan.items() if bits.weights or bits.activations or bits.bias}

    def check_bits(self, modules: Mapping[str, Quantizable]) -> Iterator[ArgumentError]:
        """One error for each override that reaches nothing, or asks of a module what it does not have."""
        for pattern, given in self._overrides.items():
            found = [name for name in modules if _matches(pattern, name)]
            key = self._overrides_key
            if not found:
                yield ArgumentError(key, pattern, message=_nothing(pattern, list(modules)))
            for word, bits in given.items():
                part = _PARTS[_MEANS.get(word, word)]
                without = [name for name in found if not getattr(modules[name], part)]
                if bits and without and len(without) == len(found):
                    message = f"{without[0]!r} is a {modules[without[0]].kind}: it has no {part} that can be quantized"
                    yield ArgumentError(key, pattern, word, message=message)

    def must_have(
        self, least: int, modules: Mapping[str, Quantizable], parts: Sequence[str], why: str
    ) -> Iterator[ArgumentError]:
        """One error for each key that gives one of these parts (`weights`, `activations`, `bias`) too few bits."""
        told: dict[tuple[str, ...], str] = {}
        for name, bits in self.bits(modules).items():
            for part in parts:
                if (getattr(bits, part) or least) < least:
                    told.setdefault(self._key_of(part, bits.given_by), name)
        for key, name in told.items():
            yield ArgumentError(*key, message=f"must be {least} or more: {why} ({name!r})")

    def quantize(self, name: str, weight: Tensor, context: Context) -> Tensor:
        """The values that the forward pass uses; `context.settings[name]` is the number of bits."""
        raise NotImplementedError(f"{type(self).__name__} must define quantize()")

    def quantize_activation(self, name: str, output: Tensor, context: Context) -> Tensor:
        """What goes on in place of an activation's output; `context.activations[name]` is the number of bits."""
        raise NotImplementedError(f"{type(self).__name__} must define quantize_activation()")

    def parameter_group(self, activations: Sequence[str], device: torch.device) -> Mapping[str, Any]:
        """A group for the optimizer, of parameters that are trained with the model; empty where there are none."""
        return {}

    @property
    def _overrides_key(self) -> str:
        return "overrides" if self.overrides else "bits_overrides"

    @property
    def _overrides(self) -> Overrides:
        return self.overrides or self.bits_overrides

    def _chosen(self, name: str) -> str | None:
        """The override that counts for a module: an equal name wherever it stands, else the first that matches."""
        bare = without_wrappers(name)
        equal = [pattern for pattern in self._overrides if without_wrappers(pattern) == bare]
        return next(iter(equal), None) or next((p for p in self._overrides if _matches(p, name)), None)

    def _key_of(self, part: str, given_by: tuple[str, ...]) -> tuple[str, ...]:
        """The key that gives a part its bits: of an override where that has one, else the quantizer's."""
        given = self._overrides.get(given_by[-1], {}) if given_by else {}
        word = next((word for word in given if _PARTS[_MEANS.get(word, word)] == part), None)
        return (*given_by, word) if word else (f"bits_{part}",)

    def _bits_of(self, module: Quantizable, pattern: str | None) -> ModuleBits:
        given = {_MEANS.get(key, key): bits for key, bits in self._overrides.get(pattern or "", {}).items()}
        asked = {_PARTS[key]: given.get(key, getattr(self, key)) for key in _PARTS}
        parts = {part: bits for part, bits in asked.items() if bits and bits < _FLOAT and getattr(module, part)}
        key = (self._overrides_key, pattern) if pattern is not None else ()
        return ModuleBits(**parts, given_by=key)


def _matches(pattern: str, name: str) -> bool:
    same = without_wrappers(pattern) == without_wrappers(name)
    return same or matches(pattern, name, expressions=True)


def _nothing(pattern: str, names: list[str]) -> str:
    inside = [name for name in names if name.startswith(f"{pattern}.")]
    hint = f"; it holds {inside[0]!r}: say '{pattern}.*'" if inside else did_you_mean(pattern, names)
    return f"{pattern!r} matches no module that can be quantized{hint}"
