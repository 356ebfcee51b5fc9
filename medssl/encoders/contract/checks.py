"""Clauses that every encoder must keep. Run them on your own class with ``medssl.encoders.base.check_encoder``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from medssl.encoders.base import Encoder
from medssl.encoders.contract.masks import DROP, FILL, SPARSE
from medssl.encoders.contract.runs import (
    clause,
    equal_hidden,
    gradient,
    image_for,
    run,
    same,
    select,
    total,
    unequal_hidden,
)  # fmt: skip
from medssl.nn.drop_path import keyed_by_sample, without_dropout
from medssl.ops.patches import cells_of
from medssl.types import Features, MaskMode, UserError

Clauses = tuple[Callable[[Encoder, Tensor, Tensor, MaskMode], None], ...]


def check(encoder: Encoder, size: Sequence[int] | None = None) -> None:
    """See :func:`medssl.encoders.base.check_encoder`."""
    describes_itself(encoder)
    coarsest = encoder.strides[-1]
    multiples = (2, 3) if len(coarsest) == 2 else (2, 2, 1)
    size = tuple(stride * n for stride, n in zip(coarsest, multiples, strict=True)) if size is None else tuple(size)
    cells_of(size, coarsest, noun="size of the check: size")
    image = image_for(encoder, size)
    for dense_clause in DENSE:
        dense_clause(copy.deepcopy(encoder), image)
    unequal, equal = unequal_hidden(encoder, size), equal_hidden(encoder, size)
    clauses: dict[MaskMode, tuple[Clauses, Tensor]] = {
        "sparse": (SPARSE, unequal),
        "fill": (FILL, unequal),
        "drop": (DROP, equal),
    }
    for mode in sorted(encoder.mask_modes):
        for masked_clause in clauses[mode][0]:
            masked_clause(copy.deepcopy(encoder), image, clauses[mode][1], mode)


def describes_itself(encoder: Encoder) -> None:
    """The attributes agree: one number of axes, one stride for each map and axis, each a divisor of the next."""
    ndim = len(encoder.strides[-1])
    clause(encoder.ndims == {ndim}, f"ndims {set(encoder.ndims)} but strides have {ndim} axes")
    clause(len(encoder.channels) == len(encoder.strides), "channels and strides have one entry for each map")
    clause(len(encoder.mask_cell) == ndim, f"mask_cell {encoder.mask_cell} needs {ndim} entries")
    for fine, coarse in zip(encoder.strides, encoder.strides[1:], strict=False):
        nested = len(fine) == len(coarse) and all(b % a == 0 for a, b in zip(fine, coarse, strict=True))
        clause(nested, f"strides go from fine to coarse: {fine} does not divide {coarse}")
    for cell, stride in zip(encoder.mask_cell, encoder.strides[-1], strict=True):
        clause(max(cell, stride) % min(cell, stride) == 0, f"mask_cell {encoder.mask_cell} nests with the strides")


def maps_have_their_shapes(encoder: Encoder, image: Tensor) -> None:
    """Maps have the described shapes, fine to coarse; pooled features and tokens have the channels of the last map."""
    features = run(encoder, image)
    clause(len(features.maps) == len(encoder.channels), f"{len(features.maps)} maps, {len(encoder.channels)} described")
    for number, (x, channels, stride) in enumerate(zip(features.maps, encoder.channels, encoder.strides, strict=True)):
        expected = (len(image), channels, *cells_of(image.shape[2:], stride))
        clause(tuple(x.shape) == expected, f"map {number} has shape {tuple(x.shape)}, described as {expected}")
    expected = (len(image), encoder.channels[-1])
    clause(
        tuple(features.pooled.shape) == expected,
        f"pooled has shape {tuple(features.pooled.shape)}, expected {expected}",
    )
    if features.tokens is not None:
        expected = (len(image), prod(cells_of(image.shape[2:], encoder.strides[-1])), encoder.channels[-1])
        token_shape = tuple(features.tokens.shape)
        clause(
            token_shape == expected,
            f"tokens have shape {token_shape}, expected one for each position of the last map, {expected}",
        )


def every_parameter_learns(encoder: Encoder, image: Tensor) -> None:
    """Each trainable parameter gets a finite gradient: data parallelism needs all of them."""
    torch.autograd.backward(total(run(encoder.train(), image)))
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            clause(parameter.grad is not None, f"parameter {name} gets no gradient")
            clause(
                bool(torch.isfinite(gradient(parameter)).all()), f"parameter {name} gets a gradient that is not finite"
            )


def bfloat16_is_finite(encoder: Encoder, image: Tensor) -> None:
    """Under bfloat16 autocast, features and gradients are finite."""
    with torch.autocast(image.device.type, torch.bfloat16):
        value = total(run(encoder.train(), image))
    torch.autograd.backward(value)
    clause(bool(value.isfinite()), "features are not finite under bfloat16 autocast")
    for name, parameter in encoder.named_parameters():
        is_finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
        clause(is_finite, f"the gradient of {name} is not finite under bfloat16 autocast")


def state_is_complete(encoder: Encoder, image: Tensor) -> None:
    """A changed copy that loads the state dict gives the same features bit for bit."""
    run(encoder.train(), image)
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        for tensor in (*changed.parameters(), *changed.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.25)
    changed.load_state_dict(encoder.state_dict(), strict=True)
    same(run(encoder.eval(), image), run(changed.eval(), image), "a state-dict round trip changes the features", 0.0)


def rows_are_independent(encoder: Encoder, image: Tensor) -> None:
    """In evaluation mode a sample's features do not depend on the rest of its batch."""
    whole, last_alone = run(encoder.eval(), image), run(encoder.eval(), image[-1:])
    tokens = None if whole.tokens is None else whole.tokens[-1:]
    rows = Features(maps=tuple(x[-1:] for x in whole.maps), pooled=whole.pooled[-1:], tokens=tokens)
    same(rows, last_alone, "in evaluation mode a sample's features depend on its batch")


def samples_drop_branches_of_their_own(encoder: Encoder, image: Tensor) -> None:
    """In training mode, drop-path depends on a sample's number alone: not on its place in the batch, nor on others."""
    batch_statistics = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    without_dropout(encoder.train())
    samples = (11, 4, 7)
    with keyed_by_sample(encoder, 0, samples):
        features = run(copy.deepcopy(encoder), image)
    for what, order in {"the order of the batch": (2, 0, 1), "the rest of the batch": (1,)}.items():
        if len(order) == 1 and batch_statistics:
            continue
        with keyed_by_sample(encoder, 0, [samples[row] for row in order]):
            selected = run(copy.deepcopy(encoder), image[list(order)])
        rows = Features(*(select(part, order) for part in (features.maps, features.pooled, features.tokens)))
        same(rows, selected, f"in training mode a sample's features depend on {what}: use medssl.nn.drop_path")


def recomputing_changes_nothing(encoder: Encoder, image: Tensor) -> None:
    """An encoder that can recompute activations has the same gradients when it does, also with drop-path."""
    if not encoder.parts():
        return
    gradients = []
    for recompute in (False, True):
        network: Any = copy.deepcopy(encoder).train()
        network.recompute = recompute
        with keyed_by_sample(network, 0, (11, 4, 7)):
            value = total(run(network, image))
        torch.autograd.backward(value)
        gradients.append({name: gradient(parameter) for name, parameter in network.named_parameters()})
    for name, expected in gradients[0].items():
        close = torch.allclose(expected, gradients[1][name], 1e-4, 1e-6)
        clause(close, f"recomputed activations give parameter {name} another gradient")


def invalid_images_are_refused(encoder: Encoder, image: Tensor) -> None:
    """Another number of channels, and a size that the strides do not divide, are refused by a UserError."""
    invalid_images = {"one channel more": image.repeat_interleave(2, dim=1)[:, : encoder.in_channels + 1]}
    for axis, stride in enumerate(encoder.strides[-1]):
        if stride > 1:
            invalid_images[f"axis {axis} one voxel short"] = image.narrow(axis + 2, 0, image.shape[axis + 2] - 1)
    for what, invalid_image in invalid_images.items():
        try:
            encoder(invalid_image)
        except UserError:
            continue
        clause(False, f"an image with {what} is not refused by a UserError")


DENSE = (
    maps_have_their_shapes,
    every_parameter_learns,
    bfloat16_is_finite,
    state_is_complete,
    rows_are_independent,
    samples_drop_branches_of_their_own,
    recomputing_changes_nothing,
    invalid_images_are_refused,
)
