"""Laws of what a component decides about weights: masks, penalties, quantized values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from prunekit.components.pruner import Observing
from prunekit.errors import ScheduleError
from prunekit.progress import Progress
from prunekit.quantization.quantizable import QuantizesModules
from prunekit.testing.asking import (
    ask,
    context_of,
    decisions,
    make_up_gradients,
    masks_of,
    observed_masks_of,
    penalty_of,
    quantized_activations_of,
    quantized_weights_of,
    touched,
)
from prunekit.testing.exactness import asked_sparsity, asking_nothing, must_be_exact
from prunekit.testing.laws import OWNERS, PRUNER, QUANTIZER, REGULARIZER, Broken, NotApplicable, law, listed, must
from prunekit.testing.runs import FIRST, LAST, MINIBATCHES, Run, batches, differences, reseed
from prunekit.testing.subject import Subject
from prunekit.testing.tiny import TinyNet


@law(*OWNERS)
def decides(subject: Subject) -> None:
    """It does something: masks that prune, a penalty that is not zero, values that are not the weights."""
    run = Run(subject).train(range(1, LAST + 1))
    if subject.kind == PRUNER:
        # One that keeps what is zero finds nothing to do in a dense network.
        zeros = _pruned(run) or _pruned(Run(subject, model=_with_ties()).train(range(1, LAST + 1)))
        must(zeros > 0, "a weight that is pruned by the end of the window", "none")
    elif subject.kind == REGULARIZER:
        penalty = penalty_of(run)
        must(bool(penalty != 0), "a penalty", f"{penalty.item()}")
    else:
        must(any(True for _ in _made(run)), "values other than those of the float model", "the same")


@law(PRUNER, REGULARIZER, basic=True)
def boolean_masks(subject: Subject) -> None:
    """Masks are boolean, shaped like their parameters, and of these alone."""
    run, moment = Run(subject), Progress(FIRST, 0, MINIBATCHES)
    # Asked without the scheduler, which would refuse what is wrong.
    for name, mask in [*masks_of(run, moment).items(), *observed_masks_of(run, moment).items()]:
        must(name in run.policy.parameters, f"masks of {listed(run.policy.parameters)}", f"a mask of {name!r}")
        shape = tuple(run.policy.parameters[name].shape)
        is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool and tuple(mask.shape) == shape
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        must(is_mask, f"{name}: torch.bool {shape}", got)


@law(*OWNERS)
def hands_off(subject: Subject) -> None:
    """It returns what it wants and changes nothing itself: no weight, no gradient, no buffer."""
    run = Run(subject).train([1])
    make_up_gradients(run)
    before = touched(run)
    ask(run)
    changed = list(differences(before, touched(run)))
    must(not changed, "weights, gradients and buffers as they were", listed(changed))


@law(PRUNER)
def exact_sparsity(subject: Subject) -> None:
    """The sparsity asked for is reached exactly: floor(s · n) of n units, also among equal weights."""
    for what, model in (("weights of all sizes", TinyNet()), ("weights of which many are equal", _with_ties())):
        run = Run(subject, model=model, rate=0.0).train(range(1, LAST + 1))
        must_be_exact(run, asked_sparsity(run), f"among {what}: ")


@law(PRUNER)
def zero_frees(subject: Subject) -> None:
    """Asked for a sparsity of 0, it lets go what was pruned before."""
    run = Run(asking_nothing(subject))
    half = {name: _half(weight) for name, weight in run.policy.parameters.items() if weight.numel() > 1}
    flags = {"kept": None, "forward_only": False, "double_copies": False, "scale": 1.0}
    # A state is the one way in for masks that are there before it acts.
    masks = {name: {"pruned": mask, **flags} for name, mask in half.items()}
    run.scheduler.load_state_dict({**run.scheduler.state_dict(), "masks": masks})
    run.train(range(1, LAST + 1))
    held = [name for name, mask in run.scheduler.masks.items() if not mask.all()]
    must(not held, f"no weight of {listed(half)} masked any more", f"masks of {listed(held)}")


@law(PRUNER)
def idempotent(subject: Subject) -> None:
    """Asked again about weights that have not moved, it chooses the same masks."""
    run = Run(subject, rate=0.0).train(range(1, LAST + 1))
    seen = []
    for _ in range(3):
        reseed()
        run.scheduler.on_epoch_begin(LAST)
        seen.append({name: mask.clone() for name, mask in run.scheduler.masks.items()})
    for again in seen[1:]:
        changed = list(differences(seen[0], again))
        must(not changed, _counts(seen[0]), f"{_counts(again)} ({listed(changed)})")


@law(*OWNERS)
def odd_parameters(subject: Subject) -> None:
    """Empty, scalar, constant, frozen and non-contiguous parameters are handled, or refused at load."""
    for odd, (make, refusable) in _ODD.items():
        for name in Run(subject).policy.parameters:
            model = _with_odd(name, make)
            try:
                run = Run(subject, model=model)
            except ScheduleError as error:
                must(refusable, f"{name} {odd}: handled as any other", f"refused: {error}")
                continue
            try:
                outcome = decisions(run)
            except Exception as error:
                raise Broken(
                    f"{name} {odd}: handled, or refused by check()", f"{type(error).__name__}: {error}"
                ) from error
            plain = _TWINS.get(odd)
            if odd == _FROZEN and isinstance(run.component, Observing):
                plain = None  # which has no gradient to look at
            if plain is not None:
                changed = list(differences(decisions(Run(subject, model=_with_odd(name, plain))), outcome, exact=False))
                must(not changed, f"{name} {odd}: as if it were not", listed(changed))


@law(*OWNERS)
def number_types(subject: Subject) -> None:
    """float32, bfloat16 and float16 weights alike: the count is exact, values are finite and of the weight's type."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        run = Run(subject, model=TinyNet().to(dtype), rate=0.0)
        if subject.kind == PRUNER:
            run.train(range(1, LAST + 1), [(images.to(dtype), classes) for images, classes in batches()])
            with suppress(NotApplicable):
                must_be_exact(run, asked_sparsity(run), f"{dtype}: ")
        elif subject.kind == REGULARIZER:
            penalty = penalty_of(run)
            must(bool(penalty.isfinite()), f"{dtype}: a finite penalty", f"{penalty.item()}")
            if penalty.requires_grad:
                penalty.backward()  # type: ignore[no-untyped-call]
        else:
            for name, read, weight in quantized_weights_of(run):
                must(read.dtype == weight.dtype, f"{name}: {weight.dtype}", str(read.dtype))
                must(bool(read.isfinite().all()), f"{dtype}: finite values for {name}", "others")
            for name, passed, given in quantized_activations_of(run, dtype):
                must(passed.dtype == given.dtype, f"{name}: {given.dtype}", str(passed.dtype))
                must(bool(passed.isfinite().all()), f"{dtype}: finite values for {name}", "others")


@law(REGULARIZER, QUANTIZER)
def differentiable(subject: Subject) -> None:
    """Gradients reach every weight that is trained, and every activation, and are finite, at zero weights too."""
    for what, model in (("random", TinyNet()), ("zero", _zeros())):
        run = Run(subject, model=model)
        trained = {name: p for name, p in run.policy.parameters.items() if p.requires_grad}
        if subject.kind == REGULARIZER:
            total = penalty_of(run)
            must(total.dim() == 0, "a scalar penalty", f"shape {tuple(total.shape)}")
        else:
            passed = list(quantized_activations_of(run))
            trained |= {name: given for name, _, given in passed}
            total = sum((made.sum() for _, made, _ in [*quantized_weights_of(run), *passed]), torch.zeros(()))
        must(total.requires_grad, "a result that depends on the weights", "one that is cut off from them")
        gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
        cut = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
        must(not cut, "a gradient for every weight and activation", f"none for {listed(cut)}")
        bad = [n for n, g in zip(trained, gradients, strict=True) if g is not None and not g.isfinite().all()]
        must(not bad, f"finite gradients at {what} weights", f"others for {listed(bad)}")
        flat = [n for n, g in zip(trained, gradients, strict=True) if g is not None and not g.any()]
        must(what == "zero" or not flat, "gradients that are not all zero", f"zero for {listed(flat)}")
    if subject.kind == REGULARIZER:
        _check_gradient(subject)


@law(QUANTIZER)
def levels(subject: Subject) -> None:
    """Of k bits there are at most 2^k values, in each tensor or in each channel of it."""
    run = Run(subject, model=_spread())
    if not isinstance(run.component, QuantizesModules):
        raise NotApplicable("it does not say how many bits it gives")
    run.scheduler.on_epoch_begin(FIRST)
    bits = {**run.policy.settings, **run.policy.activations}
    for name, values in _made(run):
        channels = values.flatten(1) if values.dim() > 1 else values.reshape(1, -1)
        most = min(_levels(values), max(map(_levels, channels)))
        must(most <= 2 ** bits[name], f"{name}: at most {2 ** bits[name]} values of {bits[name]} bits", f"{most}")


@law(QUANTIZER)
def masked_zeros(subject: Subject) -> None:
    """What is pruned reads as zero, whatever the quantizer makes of a zero."""
    owned = list(Run(subject).policy.parameters)
    run = Run(subject, pruned=owned).train(range(LAST + 1))
    for name, weight in run.policy.parameters.items():
        pruned = ~run.scheduler.masks[name]
        read = run.scheduler.quantized.read(weight)[pruned]
        wrong = int(read.count_nonzero()) + int(weight.detach()[pruned].count_nonzero())
        must(not wrong, f"{name}: {int(pruned.sum())} pruned weights that read as zero", f"{wrong} that do not")


def _made(run: Run) -> Iterator[tuple[str, Tensor]]:
    """What a quantizer makes of weights and activations, in training and in evaluation, where it makes something."""
    for training in (True, False):
        run.model.train(training)
        for name, values, given in [*quantized_weights_of(run), *quantized_activations_of(run)]:
            if not (torch.equal(values, given) or torch.equal(values, given.relu())):  # as an activation is given it
                yield name, values


def _levels(values: Tensor) -> int:
    """How many different values there are, but for what rounding makes of a sum."""
    ordered = values.detach().flatten().double().sort().values
    return 1 + int((ordered.diff() > 1e-5 * ordered.abs().max()).sum()) if len(ordered) else 0


def _pruned(run: Run) -> int:
    return sum(int((~mask).sum()) for mask in run.scheduler.masks.values())


def _counts(masks: Mapping[str, Tensor]) -> str:
    return listed(f"{name} keeps {int(mask.sum())} of {mask.numel()}" for name, mask in masks.items())


# Odd models


def _with_odd(name: str, make: Any) -> TinyNet:
    """The tiny network with one parameter replaced. It can no longer run forward."""
    model = TinyNet()
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    weight = getattr(module, attribute)
    odd = make(weight.detach())
    setattr(module, attribute, odd if isinstance(odd, Parameter) else Parameter(odd))
    return model


def _transposed(weight: Tensor) -> Tensor:
    """The same values in another order of memory."""
    # A vector has but one order: it becomes every other element of one twice as long.
    return weight.mT.contiguous().mT if weight.dim() > 1 else torch.stack([weight, weight], -1)[..., 0]


_FROZEN = "that is frozen"
_ODD: dict[str, tuple[Any, bool]] = {
    "with no element": (lambda weight: weight[:0], True),
    "with no dimension": (lambda weight: weight.reshape(-1)[0].clone(), True),
    "with one element": (lambda weight: weight.reshape(-1)[:1].reshape((1,) * weight.dim()).clone(), True),
    "that is constant": (torch.ones_like, False),
    "that is zero": (torch.zeros_like, False),
    _FROZEN: (lambda weight: Parameter(weight.clone(), requires_grad=False), False),
    "that is not contiguous": (_transposed, False),
}
_TWINS: dict[str, Any] = {_FROZEN: torch.clone, "that is not contiguous": torch.clone}
"""What an odd parameter must be treated like."""


def _half(weight: Tensor) -> Tensor:
    """A mask that keeps the last half of a parameter's weights."""
    return (torch.arange(weight.numel()) >= weight.numel() // 2).reshape(weight.shape)


def _with_ties() -> TinyNet:
    """Weights of a few values, a third of them zero."""
    model = TinyNet()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 2).round() / 2)
    return model


def _spread() -> TinyNet:
    """Weights evenly from -2 to 1.7 in each channel; of -2 to 2, rounded, both ends may be numbers of their own."""
    model = TinyNet()
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.linspace(-2, 1.7, parameter.numel()).reshape(-1, len(parameter))
            parameter.copy_(values.T.reshape(parameter.shape))
    return model


def _zeros() -> TinyNet:
    model = TinyNet()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def _check_gradient(subject: Subject) -> None:
    """The penalty's gradient against finite differences, in 64 bits."""
    run = Run(subject, model=TinyNet().double())
    names, weights = list(run.policy.parameters), [p for p in run.policy.parameters.values() if p.requires_grad]
    small = [weight for weight in weights if weight.numel() <= 128] or weights[:1]

    def penalty(*changed: Tensor) -> Tensor:
        replaced = {id(old): new for old, new in zip(small, changed, strict=True)}
        seen = {name: replaced.get(id(p), p.detach()) for name, p in run.policy.parameters.items()}
        result: Tensor = run.component.penalty(seen, context_of(run))
        return result

    try:
        torch.autograd.gradcheck(penalty, tuple(weight.detach().clone().requires_grad_() for weight in small))
    except Exception as error:
        text = str(error).strip().splitlines()[0]
        raise Broken(
            "the gradient of the penalty, as finite differences have it", f"{listed(names)}: {text}"
        ) from error
