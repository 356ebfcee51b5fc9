"""SimMIM: every patch from its own token by one linear layer, hidden cells of several patches, absolute differences."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.small import PATCHES, SIZES, simmim

from medssl.objectives.contract import example_batch
from medssl.ops.masking import at_resolution
from medssl.ops.patches import patchify
from medssl.types import UserError

DIMS = pytest.mark.parametrize("ndim", [2, 3])
CELLS = {2: (16, 12), 3: (16, 12, 4)}


def setting(ndim, **arguments):
    torch.manual_seed(0)
    objective = simmim(ndim, **arguments)
    batch, step = example_batch(objective.needs, 1)
    return objective, batch, step, objective.hidden(batch.views[0], step)


@DIMS
def test_a_patch_is_predicted_from_its_own_token_by_a_linear_layer(ndim):
    objective, batch, _, hidden = setting(ndim, cell=CELLS[ndim])
    with torch.no_grad():
        found, features = objective.reconstruct(batch.views[0].image, hidden)
        rows = patchify(found, PATCHES[ndim])
        for sample, patch in ((0, 0), (1, 5), (3, rows.shape[1] - 1)):
            want = objective.predict.weight @ features.tokens[sample, patch] + objective.predict.bias
            torch.testing.assert_close(rows[sample, patch], want)


@DIMS
def test_the_token_stands_at_hidden_places_and_no_patch_is_left_out(ndim):
    objective, batch, _, hidden = setting(ndim, cell=CELLS[ndim])
    entering = []
    objective.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
    with torch.no_grad():
        objective.reconstruct(batch.views[0].image, hidden)
        objective.reconstruct(0 * batch.views[0].image, hidden)
    grid = [n // side for n, side in zip(SIZES[ndim], PATCHES[ndim], strict=True)]
    a, b = (x[:, objective.encoder.extra :] for x in entering)
    assert a.shape[1] == math.prod(grid)
    covered = at_resolution(hidden, grid).flatten(1)
    assert torch.equal(a[covered], b[covered])
    assert (a[~covered] != b[~covered]).any(-1).all()
    assert hidden.sum() * 2**ndim == covered.sum()  # two patches along each axis of a cell


def test_the_linear_layer_learns_from_hidden_patches_alone():
    """Its gradient by hand: the mean over hidden voxels of sign(y - x) z."""
    objective, batch, step, hidden = setting(2, cell=CELLS[2])
    view = batch.views[0]
    loss = objective(batch, step).total
    weight, bias = torch.autograd.grad(loss, [objective.predict.weight, objective.predict.bias])
    with torch.no_grad():
        found, features = objective.reconstruct(view.image, hidden)
        covered = at_resolution(hidden, SIZES[2])[:, None] & view.valid & view.scored
        signs = patchify(torch.where(covered, torch.sign(found - view.image), 0.0), PATCHES[2]) / covered.sum()
    torch.testing.assert_close(bias, signs.sum((0, 1)), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(weight, torch.einsum("bnp,bnc->pc", signs, features.tokens), rtol=1e-4, atol=1e-6)


def test_cells_that_do_not_nest_with_patches_are_refused():
    with pytest.raises(UserError, match=r"mask cell \(16, 8\) does not nest with the encoder's stride \(8, 6\)"):
        simmim(2, cell=(16, 8))
