"""Clauses of the encoder contract about hidden cells: one list for each mask mode."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from medssl.encoders.base import Encoder
from medssl.encoders.contract.runs import clause, gradient, run, same, total
from medssl.nn.sparse import visible_mean
from medssl.ops.masking import at_resolution
from medssl.ops.patches import cells_of, patchify, unpatchify
from medssl.types import Features, MaskMode, UserError


def hidden_values_do_not_leak(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """Values in hidden voxels, also 1e6 and NaN, change no bit of the features, and their gradient is exactly 0."""
    covered = at_resolution(hidden, image.shape[2:]).unsqueeze(1)
    for training in (True, False):
        encoder.train(training)
        clean = run(copy.deepcopy(encoder), image.masked_fill(covered, 0), hidden, mode)
        for value in (1e6, torch.nan):
            corrupted = run(copy.deepcopy(encoder), image.masked_fill(covered, value), hidden, mode)
            same(clean, corrupted, f"{mode}: {value} in hidden voxels changes the features", 0.0)
        leaf = image.masked_fill(covered, 1e6).requires_grad_()
        torch.autograd.backward(total(run(encoder, leaf, hidden, mode)))
        image_gradient = gradient(leaf)
        clause(
            bool((image_gradient.masked_select(covered) == 0).all()),
            f"{mode}: the gradient at hidden voxels is not exactly 0",
        )
        reaches_visible = bool((image_gradient.masked_fill(covered, 0) != 0).any()) and bool(
            image_gradient.isfinite().all()
        )
        clause(reaches_visible, f"{mode}: the gradient at visible voxels is zero everywhere or not finite")


def mask_is_cleared(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """After a masked forward the next one is dense, also when the masked one raised an error."""
    encoder.eval()
    before = run(encoder, image)
    run(encoder, image, hidden, mode)
    same(before, run(encoder, image), f"{mode}: a mask stays behind after the forward", 0.0)
    last = [module for module in encoder.modules() if not any(True for _ in module.children())][-1]
    handle = last.register_forward_pre_hook(_fail)
    try:
        run(encoder, image, hidden, mode)
    except _Failed:
        pass
    finally:
        handle.remove()
    same(before, run(encoder, image), f"{mode}: a mask stays behind after a forward that failed", 0.0)


# --- sparse


def hidden_stays_zero(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """Every map is exactly 0 where hidden and finite elsewhere, also with nonzero biases, in both training modes."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1)
    for training in (True, False):
        features = run(encoder.train(training), image, hidden, mode)
        for number, x in enumerate(features.maps):
            covered = at_resolution(hidden, x.shape[2:]).unsqueeze(1).expand_as(x)
            where = f"map {number} in {'training' if training else 'evaluation'} mode"
            clause(bool((x[covered] == 0).all()), f"{where} is not exactly 0 where hidden")
            clause(bool(x.isfinite().all()), f"{where} is not finite (unequal numbers of visible cells)")
            clause(bool((x != 0).any()), f"{where} is zero everywhere")


def pooled_is_the_visible_mean(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """Pooled features are the mean of the last map over visible positions, 0 for a sample that is hidden entirely."""
    features = run(encoder.eval(), image, hidden, mode)
    expected = Features(maps=(), pooled=visible_mean(features.maps[-1], hidden))
    same(Features(maps=(), pooled=features.pooled), expected, "pooled is not the visible mean of the last map")


# --- sparse and fill


def all_visible_is_dense(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """With nothing hidden, features and running statistics are those of the dense network."""
    for training in (True, False):
        dense, masked = copy.deepcopy(encoder).train(training), copy.deepcopy(encoder).train(training)
        a, b = run(dense, image), run(masked, image, torch.zeros_like(hidden), mode)
        same(a, b, f"{mode}: with nothing hidden the features differ from the dense network's")
        for (name, x), y in zip(dense.named_buffers(), masked.buffers(), strict=True):
            clause(torch.allclose(x.double(), y.double(), 1e-4, 1e-5), f"with nothing hidden buffer {name} differs")


# --- fill


def hiding_changes_the_maps(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """Maps keep the dense network's shapes, are finite, and differ from those of the image with nothing hidden."""
    dense, filled = run(encoder.eval(), image), run(encoder.eval(), image, hidden, mode)
    for number, (x, y) in enumerate(zip(dense.maps, filled.maps, strict=True)):
        clause(
            x.shape == y.shape and bool(y.isfinite().all()), f"{mode}: map {number} is not finite, or of another shape"
        )
        clause(not torch.equal(x, y), f"{mode}: hiding cells leaves map {number} as it was")


# --- drop


def tokens_are_the_visible_cells(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """There are no maps. ``visible_cells`` numbers the visible cells in C order; each has one token."""
    features = run(encoder.eval(), image, hidden, mode)
    clause(features.maps == (), f"{mode}: there are maps, but no token of a hidden cell to make them of")
    visible = ~at_resolution(hidden, cells_of(image.shape[2:], encoder.strides[-1])).flatten(1)
    expected = torch.stack([row.nonzero()[:, 0] for row in visible])
    clause(
        features.visible_cells is not None and torch.equal(features.visible_cells, expected),
        f"{mode}: visible_cells is wrong",
    )
    token_shape = None if features.tokens is None else tuple(features.tokens.shape)
    expected_shape = (*expected.shape, encoder.channels[-1])
    clause(token_shape == expected_shape, f"{mode}: tokens have shape {token_shape}, expected {expected_shape}")


def all_visible_gives_the_dense_tokens(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """With nothing hidden, tokens and pooled features are those of the dense network."""
    for training in (True, False):
        dense = run(encoder.train(training), image)
        masked = run(encoder, image, torch.zeros_like(hidden), mode)
        clause(dense.tokens is not None, f"{mode}: without a mask there are no tokens")
        expected = Features(maps=(), pooled=dense.pooled, tokens=dense.tokens, visible_cells=masked.visible_cells)
        same(masked, expected, f"{mode}: with nothing hidden the tokens differ from the dense network's")


def tokens_know_their_cells(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """The same visible contents at other places have other tokens: positions are those of the whole grid."""
    cells = patchify(image, encoder.mask_cell)
    visible = ~hidden.flatten(1)
    contents = cells[0, : int(visible[0].sum())]
    placed = torch.zeros_like(cells)
    placed[visible] = contents.repeat(len(image), 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # attention of first weights is nearly the same for all tokens
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    features = run(encoder.eval(), unpatchify(placed, encoder.mask_cell, size=image.shape[2:]), hidden, mode)
    assert features.tokens is not None
    differs = [not torch.allclose(features.tokens[0], row, 1e-4, 1e-5) for row in features.tokens[1:]]
    clause(any(differs) or not bool(hidden.any()), f"{mode}: tokens do not depend on the places of their cells")


def samples_are_independent(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """In evaluation mode, reordering the samples with their masks reorders the features and changes nothing else."""
    features = run(encoder.eval(), image, hidden, mode)
    reversed_features = run(encoder, image.flip(0), hidden.flip(0), mode)
    tokens, visible_cells = features.tokens, features.visible_cells
    assert tokens is not None
    assert visible_cells is not None
    expected = Features(
        maps=(), pooled=features.pooled.flip(0), tokens=tokens.flip(0), visible_cells=visible_cells.flip(0)
    )
    same(reversed_features, expected, f"{mode}: features depend on which cells other samples hide")


def unequal_counts_are_refused(encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode) -> None:
    """Samples with different numbers of visible cells are refused by a UserError."""
    unequal = hidden.clone()
    unequal.view(len(hidden), -1)[0] = False
    try:
        encoder(image, unequal, mode)
    except UserError:
        return
    clause(not bool(hidden[0].any()), f"{mode}: samples with different numbers of visible cells are not refused")


# --- fill and drop


def every_parameter_learns_from_what_is_visible(
    encoder: Encoder, image: Tensor, hidden: Tensor, mode: MaskMode
) -> None:
    """Each trainable parameter gets a finite gradient, maybe zero: data parallelism waits for all of them."""
    torch.autograd.backward(total(run(encoder.train(), image, hidden, mode)))
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            has_gradient = parameter.grad is not None and bool(parameter.grad.isfinite().all())
            clause(has_gradient, f"{mode}: parameter {name} gets no gradient, or one that is not finite")


class _Failed(Exception):
    """Raised on purpose inside a forward."""


def _fail(*_: object) -> None:
    raise _Failed


SPARSE = (
    hidden_values_do_not_leak,
    hidden_stays_zero,
    all_visible_is_dense,
    pooled_is_the_visible_mean,
    mask_is_cleared,
)
FILL = (
    hidden_values_do_not_leak,
    all_visible_is_dense,
    hiding_changes_the_maps,
    every_parameter_learns_from_what_is_visible,
    mask_is_cleared,
)
DROP = (
    hidden_values_do_not_leak,
    tokens_are_the_visible_cells,
    all_visible_gives_the_dense_tokens,
    tokens_know_their_cells,
    samples_are_independent,
    unequal_counts_are_refused,
    every_parameter_learns_from_what_is_visible,
    mask_is_cleared,
)
