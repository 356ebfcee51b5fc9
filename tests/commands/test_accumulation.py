"""Accumulation over micro-batches gives the gradient of one large batch, in float64 to 1e-10."""

from __future__ import annotations

from dataclasses import replace

import ddp
import pytest
import torch
from heads.made import deeper, schema
from objectives.small import SIZES, encoder, plain_batch, randomize, spark, unet_mae

from medssl.heads.base import Network
from medssl.heads.classification import Linear
from medssl.heads.multi_label import MultiLabel
from medssl.heads.regression import Regression
from medssl.heads.segmentation import UNet, VoxelLinear
from medssl.objectives.base import select_rows
from medssl.training.settings import Examples
from medssl.training.supervised import Supervised
from medssl.types import LabelSchema, Step, ViewSpec
from medssl.views.mixing import Mixing


def gradients(objective, batch, split: list[list[int]]) -> list[torch.Tensor]:
    """As the training loop: counts of all micro-batches first, then a mean of their losses."""
    step = Step(0, 10, 0, batch.origin.samples)
    parts = [select_rows(batch, step, rows) for rows in split]
    counts = None
    if len(split) > 1:
        counts = torch.stack([objective.counts(*part).double() for part in parts]).sum(0) / len(split)
    objective.zero_grad()
    for part, its_step in parts:
        (objective(part, replace(its_step, counts=counts, micro_batches=len(split))).total / len(split)).backward()
    return [parameter.grad.clone() for parameter in objective.parameters() if parameter.grad is not None]


def segmentation(ndim: int, head=UNet, *, make=encoder, **arguments) -> tuple[Supervised, object]:
    """Labels on half of the samples, in unequal shares."""
    torch.manual_seed(0)
    small = make(ndim) if make is deeper else make(ndim, norm="instance")
    made = Network(small, head(small, schema(3), **arguments)).double()
    randomize(made)
    batch = plain_batch(torch.randn(4, 1, *SIZES[ndim]).double(), (0, 1, 2, 3))
    target = torch.randint(0, 3, (4, 1, *SIZES[ndim])) * 10
    target[0] = target[3, :, : SIZES[ndim][0] // 3] = -1
    target[2] = -1
    scored = torch.rand(4, 1, *SIZES[ndim]) < 0.8
    batch = replace(batch, views=(replace(batch.views[0], scored=scored),), targets=(target,))
    return Supervised(made, Examples(view=ViewSpec(size=SIZES[ndim]))), batch


def whole_images(head, kind: str, values: list[dict[str, str]], **arguments) -> tuple[Supervised, object]:
    classes = LabelSchema("grade", ((0, "a"), (1, "b"), (2, "c")), kind="classes")
    findings = LabelSchema("e,f", ((0, "e"), (1, "f")), kind="findings")
    number = LabelSchema("age", ((0, "age"),), kind="number")
    of_kind = {"classes": classes, "findings": findings, "number": number}[kind]
    small = encoder(2, norm="instance")
    made = Network(small, head(small, of_kind, **arguments)).double()
    randomize(made)
    batch = plain_batch(torch.randn(4, 1, *SIZES[2]).double(), (0, 1, 2, 3))
    return Supervised(made, Examples(view=ViewSpec(size=SIZES[2]))), replace(batch, values=tuple(values))


def masked(objective, ndim: int) -> tuple[torch.nn.Module, object]:
    randomize(objective)
    batch = plain_batch(torch.randn(4, 1, *SIZES[ndim]).double(), (0, 1, 2, 3))
    valid = torch.rand(4, 1, *SIZES[ndim]) < torch.tensor([1.0, 0.2, 0.7, 0.05]).reshape(4, 1, *(1,) * ndim)
    return objective.double(), replace(batch, views=(replace(batch.views[0], valid=valid),))


CASES = {
    "unet 2d": lambda: segmentation(2),
    "unet 3d, deep supervision": lambda: segmentation(3, deep_supervision=True),
    "unet 2d, batch Dice": lambda: segmentation(2, batch_dice=True),
    "unet 3d, batch Dice at two scales": lambda: segmentation(3, make=deeper, deep_supervision=True, batch_dice=True),
    "unet 3d, two scales": lambda: segmentation(3, make=deeper, deep_supervision=True),
    "voxel probe": lambda: segmentation(2, VoxelLinear),
    "classes": lambda: whole_images(
        Linear, "classes", [{"grade": "a"}, {}, {"grade": "c"}, {"grade": "b"}], class_weights=(1.0, 5.0, 0.3)
    ),
    "findings": lambda: whole_images(
        MultiLabel, "findings", [{"e": "1", "f": "0"}, {}, {"e": "0"}, {"f": "1"}], positive_weights=(2.0, 3.0)
    ),
    "number": lambda: whole_images(Regression, "number", [{"age": "3"}, {}, {"age": "40"}, {}]),
    "spark": lambda: masked(spark(3, encoder_norm="instance"), 3),
    "masked u-net": lambda: masked(unet_mae(3), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_four_micro_batches_of_one_give_the_gradient_of_one_of_four(name):
    torch.manual_seed(0)
    objective, batch = CASES[name]()
    if "voxel" in name:
        for norm in objective.head.norms:
            norm.eval()  # statistics of a batch are those of the micro-batch
    whole = gradients(objective, batch, [[0, 1, 2, 3]])
    parts = gradients(objective, batch, [[0], [1], [2], [3]])
    assert max(float(one.abs().max()) for one in whole) > 1e-3
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def on_each_process(name: str) -> list[torch.Tensor]:
    """Two micro-batches of one sample in each of two processes; counts are added over both, gradients averaged."""
    torch.manual_seed(0)
    objective, batch = CASES[name]()
    rows = ([0], [1]) if torch.distributed.get_rank() == 0 else ([2], [3])
    step = Step(0, 10, 0, batch.origin.samples)
    parts = [select_rows(batch, step, list(row)) for row in rows]
    counts = torch.stack([objective.counts(*part).double() for part in parts]).sum(0)
    torch.distributed.all_reduce(counts)
    for part, its_step in parts:
        (objective(part, replace(its_step, counts=counts / 2, micro_batches=2)).total / 2).backward()
    found = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    for gradient in found:
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    return found


@pytest.mark.ddp
@pytest.mark.parametrize("name", ["unet 2d", "unet 3d, batch Dice at two scales", "classes", "spark"])
def test_two_processes_of_two_micro_batches_give_the_gradient_of_one_of_four(name):
    """Labels on half of the samples: one process has none at all in its second micro-batch."""
    shared = ddp.run_two(on_each_process, name)
    torch.manual_seed(0)
    objective, batch = CASES[name]()
    whole = gradients(objective, batch, [[0, 1, 2, 3]])
    for found in shared:
        for one, other in zip(whole, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_two_unequal_micro_batches_of_mixed_samples_are_weighed_by_their_labels():
    objective, batch = CASES["classes"]()
    objective.mixing = Mixing(mixup=0.5)
    step = Step(0, 10, 0, batch.origin.samples)
    counts = objective.counts(batch, step)
    assert counts.shape == (2, 1)
    assert float(counts[0]) == pytest.approx(1.0 + 0.3 + 5.0)
