"""Whatever does not fit between a schedule, the installed plugins and a model: found before training, all at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SILENT
from torch import Tensor, nn

from examples.models.alexnet import AlexNet
from prunekit import (
    ArgumentError,
    ComponentSpec,
    CompressionScheduler,
    PolicySpec,
    Schedule,
    ScheduleError,
    Window,
    hookimpl,
)
from prunekit.components import Selectors


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """All that a refused schedule must leave alone: tensors, their hooks, the optimizer's groups and hooks."""
    hooks = [
        (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for module in model.modules()
    ]
    parameters = [(name, id(p), p.tolist(), p.requires_grad, p._backward_hooks) for name, p in model.named_parameters()]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    stepping = (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks))
    return [hooks, parameters, groups, stepping, [id(p) for group in optimizer.param_groups for p in group["params"]]]


def refusal(text: str, folder: Path, model: nn.Module | None = None, epochs: int | None = 3) -> list[str]:
    """The lines of the error, after a check that nothing has changed."""
    file = folder / "s.yaml"
    file.write_text(text, "utf-8")
    model = model or AlexNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = everything(model, optimizer)
    with pytest.raises(ScheduleError) as caught:
        CompressionScheduler.from_yaml(file, model, optimizer, epochs=epochs, trace=SILENT)
    assert everything(model, optimizer) == before
    return str(caught.value).replace(f"{file}:", "").splitlines()


# Each case: a schedule, and after the arrow what is said about it ("…" stands for any text, versions are filled in).
CASES = """\
=== unknown class
pruners:
  p:
    class: SensitivtyPruner
    sensitivities: {features.0.weight: 0.5}
policies:
- {pruner: {instance_name: p}, epochs: [0]}
--->
3:12: pruners.p.class: no pruner is registered as 'SensitivtyPruner'; did you mean 'SensitivityPruner'? (prunekit-sensitivity-pruner)
=== unknown LR scheduler
lr_schedulers:
  lr: {class: ExponentialLr, gamma: 0.9}
policies:
- {lr_scheduler: {instance_name: lr}, epochs: [0]}
--->
2:15: lr_schedulers.lr.class: no lr_scheduler is registered as 'ExponentialLr'; did you mean 'ExponentialLR'? (prunekit-torch-lr)
=== class of another section
pruners:
  p:
    class: L1Regularizer
    reg_regims: {features.0.weight: 1e-5}
policies:
- {pruner: {instance_name: p}, epochs: [0]}
--->
3:12: pruners.p.class: 'L1Regularizer' is a regularizer, not a pruner; it belongs under 'regularizers' (prunekit-l1-regularizer)
=== LR scheduler as a pruner
pruners:
  p: {class: StepLR, step_size: 3}
policies:
- {pruner: {instance_name: p}, epochs: [0]}
--->
2:14: pruners.p.class: 'StepLR' is an lr_scheduler, not a pruner; it belongs under 'lr_schedulers' (prunekit-torch-lr)
=== unknown constructor key, and the key that it should be
pruners:
  p:
    class: SparsityLevelParameterPruner
    level: {features.0.weight: 0.5}
policies:
- {pruner: {instance_name: p}, epochs: [0]}
--->
3:5: pruners.p: SparsityLevelParameterPruner needs 'levels' (dict[str, float | curve])
4:5: pruners.p.level: SparsityLevelParameterPruner has no argument 'level'; did you mean 'levels'?
=== unknown constructor key of an LR scheduler
lr_schedulers:
  lr: {class: ExponentialLR, gama: 0.9, gamma: 0.9}
policies:
- {lr_scheduler: {instance_name: lr}, epochs: [0]}
--->
2:30: lr_schedulers.lr.gama: ExponentialLR has no argument 'gama'; did you mean 'gamma'?
=== target_sparcity
pruners:
  p:
    class: AutomatedGradualPruner
    initial_sparsity: 0.05
    target_sparcity: 0.8
    weights: features.0.weight
policies:
- {pruner: {instance_name: p}, epochs: [0, 1]}
--->
3:5: pruners.p: AutomatedGradualPruner needs 'final_sparsity' (float)
5:5: pruners.p.target_sparcity: AutomatedGradualPruner has no argument 'target_sparcity'; did you mean '…_sparsity'?
=== sparsity 8.0
pruners:
  p: {class: AutomatedGradualPruner, initial_sparsity: 0.05, final_sparsity: 8.0, weights: features.0.weight}
policies:
- {pruner: {instance_name: p}, epochs: [0, 1]}
--->
2:78: pruners.p.final_sparsity: must be less than or equal to 1, got 8.0
=== final below initial
pruners:
  p: {class: AutomatedGradualPruner, initial_sparsity: 0.5, final_sparsity: 0.3, weights: features.0.weight}
policies:
- {pruner: {instance_name: p}, epochs: [0, 1]}
--->
2:77: pruners.p.final_sparsity: must be above initial_sparsity 0.5, got 0.3
=== missing keys
pruners:
  p: {class: AutomatedGradualPruner}
policies:
- {pruner: {instance_name: p}, epochs: [0, 1]}
--->
2:6: pruners.p: AutomatedGradualPruner needs 'initial_sparsity' (float)
2:6: pruners.p: AutomatedGradualPruner needs 'final_sparsity' (float)
2:6: pruners.p: AutomatedGradualPruner needs 'weights' (str | list[str])
=== wrong types, as YAML 1.1 and 1.2 see them differently
pruners:
  p:
    class: MagnitudeParameterPruner
    thresholds:
      features.0.weight: '1e-4'
      features.3.weight: -1
      features.6.weight: .nan
      features.8.weight: on
      features.10.weight: [0.1]
      classifier.1.weight: true
      classifier.4.weight:
policies:
- {pruner: {instance_name: p}, epochs: [0]}
--->
5:26: pruners.p.thresholds.features.0.weight: must be a valid number, got '1e-4'
6:26: pruners.p.thresholds.features.3.weight: must be greater than or equal to 0, got -1
7:26: pruners.p.thresholds.features.6.weight: must be a finite number, got nan
8:26: pruners.p.thresholds.features.8.weight: must be a valid number, got 'on'
9:27: pruners.p.thresholds.features.10.weight: must be a valid number, got [0.1]
10:28: pruners.p.thresholds.classifier.1.weight: must be a valid number, got True
11:27: pruners.p.thresholds.classifier.4.weight: must be a valid number, got None
=== a key of another shape
pruners:
  p: {class: SparsityLevelParameterPruner, levels: [features.0.weight, 0.5]}
regularizers:
  r: {class: GroupLassoRegularizer, reg_regims: {features.0.weight: 1e-5, features.3.weight: [1e-5, 3d]}}
policies:
- {pruner: {instance_name: p}, epochs: [0]}
- {regularizer: {instance_name: r}, epochs: [0]}
--->
2:52: pruners.p.levels: must be a mapping, got ['features.0.weight', 0.5]
4:69: regularizers.r.reg_regims.features.0.weight: must be a list, got 1e-05
4:101: regularizers.r.reg_regims.features.3.weight[1]: must be …'3D'…, got '3d'
=== parameter names that the model lacks
pruners:
  p:
    class: AutomatedGradualPruner
    initial_sparsity: 0.05
    final_sparsity: 0.8
    weights:
      - features.0.weight
      - features.1.weight
      - 'features.module.0.wieght'
  q:
    class: SensitivityPruner
    sensitivities:
      clasifier.1.weight: 0.5
policies:
- {pruner: {instance_name: p}, epochs: [0, 1]}
- {pruner: {instance_name: q}, epochs: [0]}
--->
8:9: pruners.p.weights[1]: 'features.1.weight' selects nothing in the model; nearest are 'features.10.weight', 'features.8.weight', 'features.6.weight'
9:9: pruners.p.weights[2]: 'features.module.0.wieght' selects nothing in the model; nearest are 'features.0.weight', …
13:7: pruners.q.sensitivities.clasifier.1.weight: 'clasifier.1.weight' selects nothing in the model; nearest are 'classifier.1.weight', …
=== patterns that select nothing
regularizers:
  r:
    class: L1Regularizer
    reg_regims:
      conv*: 1e-5
      'features.?.weights': 1e-5
      're:features\\.\\d': 1e-5
      're:(': 1e-5
      '*.bias': 1e-5
      '*': 1e-6
policies:
- {regularizer: {instance_name: r}, epochs: [0]}
--->
5:7: regularizers.r.reg_regims.conv*: 'conv*' selects nothing in the model; known are 'classifier.1.bias', …
6:7: regularizers.r.reg_regims.features.?.weights: 'features.?.weights' selects nothing in the model; nearest are …
7:7: regularizers.r.reg_regims.re:features\\.\\d: 're:features\\\\.\\\\d' selects nothing in the model; …
8:7: regularizers.r.reg_regims.re:(: 're:(' is no regular expression: missing ), unterminated subpattern at position 0
=== names that select what others have selected
pruners:
  p:
    class: SparsityLevelParameterPruner
    levels:
      features.0.weight: 0.5
      module.features.0.weight: 0.7
policies:
- {pruner: {instance_name: p}, epochs: [0]}
--->
6:7: pruners.p.levels.module.features.0.weight: 'module.features.0.weight' selects nothing that 'features.0.weight' has not selected already
=== a policy that never acts
pruners:
  p: {class: SparsityLevelParameterPruner, levels: {features.0.weight: 0.5}}
policies:
- pruner: {instance_name: p}
  starting_epoch: 3
  ending_epoch: 30
  frequency: 3
- {pruner: {instance_name: p}, epochs: [0, 7]}
- {pruner: {instance_name: p}, epochs: [31]}
--->
4:3: policies[0]: never acts: its first epoch is 3, and a run of 3 ends with 2
9:3: policies[2]: never acts: its first epoch is 31, and a run of 3 ends with 2
=== unknown policy arg
pruners:
  p: {class: SparsityLevelParameterPruner, levels: {features.0.weight: 0.5}}
policies:
- pruner:
    instance_name: p
    args:
      mask_on_forward_onli: true
  epochs: [0]
--->
7:7: policies[0].pruner.args.mask_on_forward_onli: … has no argument 'mask_on_forward_onli'; did you mean 'mask_on_forward_only'?
=== a pruner's arg on a regularizer
regularizers:
  r: {class: L1Regularizer, reg_regims: {features.0.weight: 1e-5}}
policies:
- regularizer: {instance_name: r, args: {mask_gradients: true}}
  epochs: [0]
--->
4:42: policies[0].regularizer.args.mask_gradients: … has no argument 'mask_gradients'; known are 'keep_mask'
=== policy args of other types and out of range
pruners:
  p: {class: SparsityLevelParameterPruner, levels: {features.0.weight: 0.5}}
policies:
- pruner: {instance_name: p, args: {mini_batch_pruning_frequency: -1, keep_mask: 1, use_double_copies: 'yes'}}
  epochs: [0]
- pruner: {instance_name: p, args: {levels: {features.3.weight: 3}}}
  epochs: [1]
--->
4:…: policies[0].pruner.args.mini_batch_pruning_frequency: must be greater than or equal to 0, got -1
4:…: policies[0].pruner.args.keep_mask: must be a valid boolean, got 1
4:…: policies[0].pruner.args.use_double_copies: must be a valid boolean, got 'yes'
6:65: policies[1].pruner.args.levels.features.3.weight: must be less than or equal to 1, got 3
=== contradictory policy args
pruners:
  p: {class: SparsityLevelParameterPruner, levels: {features.0.weight: 0.5}}
policies:
- pruner:
    instance_name: p
    args:
      keep_mask: true
      mask_gradients: true
  epochs: [0]
--->
8:23: policies[0].pruner.args.mask_gradients: needs mask_on_forward_only: true, or weights are masked anyway
=== a policy without a usable window, and a component with wrong arguments, are checked for the rest
pruners:
  p: {class: SparsityLevelParameterPruner, levels: {features.0.wieght: 5}}
policies:
- pruner: {instance_name: p}
  starting_epoch: 3
  ending_epoch: 1
- pruner: {instance_name: p, args: {keep_msk: true}}
  epochs: [0]
--->
2:53: pruners.p.levels.features.0.wieght: 'features.0.wieght' selects nothing in the model; nearest are 'features.0.weight', 'features.10.weight', 'features.8.weight'
2:72: pruners.p.levels.features.0.wieght: must be less than or equal to 1, got 5
4:3: policies[0]: 0 <= starting_epoch < ending_epoch must hold, got 3 and 1
7:37: policies[1].pruner.args.keep_msk: a pruner's policy has no argument 'keep_msk'; did you mean 'keep_mask'?
=== levels for a pruner that has none
pruners:
  p: {class: MagnitudeParameterPruner, thresholds: {features.0.weight: 0.5}}
policies:
- pruner:
    instance_name: p
    args: {levels: {features.0.weight: 0.5}}
  epochs: [0]
--->
6:12: policies[0].pruner.args.levels: MagnitudeParameterPruner has no levels to replace
=== two pruners on one parameter in one epoch
pruners:
  p: {class: SparsityLevelParameterPruner, levels: {'features.*.weight': 0.5}}
  q: {class: SparsityLevelParameterPruner, levels: {features.3.weight: 0.7}}
policies:
- {pruner: {instance_name: p}, epochs: [0, 2]}
- pruner: {instance_name: q}
  epochs: [1, 2]
--->
6:11: policies[1].pruner: policies[0] ('p') prunes 'features.3.weight' in epoch 2 too; two policies may not
=== two learning rates in one epoch
lr_schedulers:
  a: {class: StepLR, step_size: 3}
  b: {class: ExponentialLR, gamma: 0.9}
policies:
- {lr_scheduler: {instance_name: a}, epochs: [0, 2]}
- {lr_scheduler: {instance_name: b}, starting_epoch: 1, ending_epoch: 9}
--->
6:18: policies[1].lr_scheduler: policies[0] ('a') sets the learning rate in epoch 2 too; two policies may not
=== a class that refuses its arguments
lr_schedulers:
  lr: {class: CyclicLR, base_lr: [0.1, 0.2], max_lr: 1.0}
policies:
- {lr_scheduler: {instance_name: lr}, epochs: [0]}
--->
2:15: lr_schedulers.lr.class: CyclicLR refuses its arguments: ValueError: base_lr must have the same length as …
=== structure and content of one file together, by line
version: 2
prunners: {}
pruners:
  agp:
    class: AutomatedGradualPruner
    initial_sparsity: 0.05
    final_sparsity: 8.0
    weights: [features.0.weight]
  misspelt:
    class: SensitivtyPruner
    sensitivities: {features.0.weight: 0.5}
  ok:
    class: SparsityLevelParameterPruner
    levels: {classifier.1.weight: 0.5, conv9.weight: 0.5, conv9.weight: 0.6}
lr_schedulers:
  lr: {class: StepLR, step_sise: 3}
policies:
- pruner: {instance_name: okk}
  epochs: [0]
- pruner: {instance_name: ok}
  epochs: [5]
- lr_scheduler: {instance_name: lr, args: {a: 1}}
  starting_epoch: 0
- pruner: {instance_name: agp}
  starting_epoch: 2
  ending_epoch: 1
--->
1:10: version: this prunekit reads version 1 of the schedule language, got 2
2:1: prunners: unknown key 'prunners'; did you mean 'pruners'?
7:21: pruners.agp.final_sparsity: must be less than or equal to 1, got 8.0
10:12: pruners.misspelt.class: no pruner is registered as 'SensitivtyPruner'; did you mean 'SensitivityPruner'? (prunekit-sensitivity-pruner)
14:40: pruners.ok.levels.conv9.weight: 'conv9.weight' selects nothing in the model; known are 'classifier.1.bias', …
14:59: pruners.ok.levels.conv9.weight: the key 'conv9.weight' stands twice, with different values; the first is on line 14
16:7: lr_schedulers.lr: StepLR needs 'step_size' (int)
16:23: lr_schedulers.lr.step_sise: StepLR has no argument 'step_sise'; did you mean 'step_size'?
18:27: policies[0].pruner.instance_name: no pruner is called 'okk'; did you mean 'ok'?
20:3: policies[1]: never acts: its first epoch is 5, and a run of 3 ends with 2
22:3: policies[2]: 'ending_epoch' missing; a policy needs both, or 'epochs'
22:44: policies[2].lr_scheduler.args.a: an lr_scheduler's policy has no argument 'a'; known are 'relative'
24:3: policies[3]: 0 <= starting_epoch < ending_epoch must hold, got 2 and 1
"""  # noqa: E501


@pytest.mark.parametrize("case", CASES.split("=== ")[1:], ids=lambda case: case.splitlines()[0])
def test_everything_wrong_is_said_at_its_place_and_nothing_is_changed(case: str, tmp_path: Path) -> None:
    """Peer failures 8, 9, 10, 16 and 22."""
    text, expected = case.partition("\n")[2].split("--->\n")
    got = refusal(text, tmp_path)
    patterns = expected.splitlines()
    assert [line if matches(line, pattern) else pattern for line, pattern in zip(got, patterns, strict=False)] == got
    assert len(got) == len(patterns)


def matches(line: str, pattern: str) -> bool:
    pattern = re.sub(r"\((prunekit-[\w-]+)\)$", lambda found: f"({found[1]} {version(found[1])})", pattern)
    return re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), line) is not None


def test_not_yaml_is_one_error_and_nothing_else_is_guessed(tmp_path: Path) -> None:
    assert refusal("pruners:\n  p: {class: Nobody\npolicies: []\n", tmp_path) == [
        "3:9: not YAML: while parsing a flow mapping: expected ',' or '}', but got ':'"
    ]


def test_the_length_of_the_run_may_be_told_later(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "pruners:\n  p: {class: SparsityLevelParameterPruner, levels: {features.0.weight: 0.5}}\n"
        "policies:\n- {pruner: {instance_name: p}, epochs: [5]}\n"
    )
    scheduler = CompressionScheduler.from_yaml(file, AlexNet(), trace=SILENT)
    with pytest.raises(ScheduleError) as caught:
        next(scheduler.epochs(5))
    assert str(caught.value) == (
        f"{file}:4:3: policies[0]: never acts: its first epoch is 5, and a run of 5 ends with 4"
    )


def test_a_learning_rate_needs_an_optimizer(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "lr_schedulers: {lr: {class: StepLR, step_size: 3}}\n"
        "policies:\n- {lr_scheduler: {instance_name: lr}, epochs: [0]}\n"
    )
    with pytest.raises(ScheduleError) as caught:
        CompressionScheduler.from_yaml(file, AlexNet(), trace=SILENT)
    assert str(caught.value) == (
        f"{file}:3:18: policies[0].lr_scheduler: a learning rate needs an optimizer, and none was given"
    )


# Wrapped and unwrapped models


MODELS: dict[str, nn.Module] = {
    "plain": AlexNet(),
    "features wrapped": AlexNet(wrapped=True),
    "all wrapped": nn.DataParallel(AlexNet()),
    "both wrapped": nn.DataParallel(AlexNet(wrapped=True)),
}


@pytest.mark.parametrize(
    "selector",
    [
        *[
            "features.0.weight",
            "features.module.0.weight",
            "module.features.0.weight",
            "module.features.module.0.weight",
        ],
        *["features.0.w*", "features.module.0.w*", "re:features\\.0\\.weight"],
    ],
)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_name_fits_wrapped_and_unwrapped_models_both_ways(selector: str, model: nn.Module) -> None:
    """The reference ties a schedule to `DataParallel` or to its absence."""
    policies = [{"pruner": {"instance_name": "p"}, "epochs": [0]}]
    section = {"p": {"class": "SparsityLevelParameterPruner", "levels": {selector: 0.5}}}
    data = {"version": 1, "pruners": section, "policies": policies}
    scheduler = CompressionScheduler.from_dict(data, model, trace=SILENT)
    scheduler.on_epoch_begin(0)
    [masked] = scheduler.masks
    assert ".".join(part for part in masked.split(".") if part != "module") == "features.0.weight"
    assert scheduler.sparsity(masked) == 0.5


# From Python


@dataclass
class Mine:
    weights: Selectors

    def compute_masks(self, parameters: Mapping[str, Tensor], context: Any) -> Mapping[str, Tensor]:
        return {}

    def check(self, parameters: Mapping[str, Tensor], context: Any) -> Any:
        for name, parameter in parameters.items():
            if parameter.dim() != 4:
                yield ArgumentError(*context.keys[name], message=f"{name!r} has {parameter.dim()} dimensions")


def python_refusal(cls: type, **args: Any) -> list[str]:
    schedule = Schedule([ComponentSpec("pruner", "p", cls, args)], [PolicySpec("pruner", "p", Window(0, 1))])
    with pytest.raises(ScheduleError) as caught:
        CompressionScheduler(schedule, AlexNet(), trace=SILENT)
    return str(caught.value).splitlines()


def test_python_objects_are_refused_in_the_same_words() -> None:
    assert python_refusal(Mine, wieghts=["fc"]) == [
        "<python>: pruners.p.wieghts: Mine has no argument 'wieghts'; did you mean 'weights'?",
        "<python>: pruners.p: Mine needs 'weights' (str | list[str])",
    ]
    assert python_refusal(Mine, weights=["classifier.1.wieght"]) == [
        "<python>: pruners.p.weights[0]: 'classifier.1.wieght' selects nothing in the model; "
        "nearest are 'classifier.1.weight', 'classifier.6.weight', 'classifier.4.weight'"
    ]


def test_what_a_component_s_check_finds_is_an_error_of_the_schedule() -> None:
    assert python_refusal(Mine, weights=["classifier.1.weight"]) == [
        "<python>: pruners.p.weights[0]: 'classifier.1.weight' has 2 dimensions"
    ]


def test_a_component_that_fails_while_it_is_checked_is_an_error_of_the_schedule() -> None:
    class Failing(Mine):
        def check(self, parameters: Mapping[str, Tensor], context: Any) -> Any:
            raise KeyError("gone")

    class Refusing(Mine):
        def __post_init__(self) -> None:
            raise RuntimeError("not on a Monday")

    assert python_refusal(Failing, weights=["*"]) == [
        "<python>: pruners.p.class: Failing failed while it was being checked: KeyError: 'gone'"
    ]
    assert python_refusal(dataclass(Refusing), weights=["*"]) == [
        "<python>: pruners.p.class: Refusing refuses its arguments: RuntimeError: not on a Monday"
    ]


def test_a_class_that_is_no_component_is_refused() -> None:
    class NoPruner:
        pass

    class Misspelt(Mine):
        @hookimpl
        def on_epoch_ned(self) -> None: ...

    assert python_refusal(NoPruner) == [
        f"<python>: pruners.p.class: 'NoPruner' of {__name__} is no pruner: it has no compute_masks()"
    ]
    assert python_refusal(Misspelt, weights=["*"]) == [
        f"<python>: pruners.p.class: {__name__} implements 'on_epoch_ned', and there is no such hook; "
        "did you mean 'on_epoch_end'?"
    ]
