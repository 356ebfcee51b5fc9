"""Weights of slices in an encoder of volumes: what both see is cut out of one store, as training does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data.stores import fill_store, volume
from safetensors.torch import save_file
from torch import nn

from medssl.data.loading.crops import slice_axes
from medssl.data.loading.loader import make_loader
from medssl.encoders.adapt import adapt_weight, resize_positions
from medssl.encoders.resenc import ResEnc
from medssl.encoders.vit import ViT
from medssl.encoders.weights import load
from medssl.ops.patches import patchify
from medssl.types import Geometry, ViewPlan, ViewSpec
from medssl.views.plan import make_batch

SHAPE = (24, 16, 20)  # left-right, back to front, foot to head


@pytest.fixture
def views(tmp_path, monkeypatch):
    """The slice and the whole of a volume of equal slices, by the road of training."""
    slices = np.random.default_rng(0).integers(0, 1000, SHAPE[:2])
    image = np.repeat(slices[..., None], SHAPE[2], axis=2).astype(np.int16)
    store = fill_store(tmp_path / "store", {"scan": volume(image[None])}, monkeypatch)
    row, column = slice_axes(np.eye(4), 2)

    def view(size):
        plan = ViewPlan((ViewSpec(size, geometry=Geometry(flip="none")),))
        loader = make_loader(store, plan=plan, read_size=size, batch_size=1, seed=0, workers=0)
        (seen,) = make_batch(next(iter(loader)), plan, seed=0, device="cpu").views
        assert seen.valid.all()
        return seen.image

    return view((SHAPE[row], SHAPE[column])), view(SHAPE)


def from_slices(flat: nn.Module, deep: nn.Module, folder) -> tuple[nn.Module, nn.Module]:
    """Both encoders, the one of volumes with the weights of the other."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*flat.parameters(), *flat.buffers()):
            tensor.copy_(torch.rand(tensor.shape) - (0.3 if tensor.ndim > 1 else 0))
    save_file({key: value.clone() for key, value in flat.state_dict().items()}, folder / "flat.safetensors")
    report = load(deep, folder / "flat.safetensors")
    assert report.matched == 1
    assert report.adapted
    return flat.eval(), deep.eval()


def test_a_volume_of_equal_slices_gets_the_response_of_the_slice(views, tmp_path):
    """Kernels of 3 x 5 and strides of 1 x 2, which volumes have on the other axes."""
    arguments = {"channels": [4, 6], "blocks": [1, 1], "norm": "batch"}
    flat = ResEnc(ndim=2, kernels=[(3, 5), (3, 3)], strides=[(1, 1), (1, 2)], **arguments)
    deep = ResEnc(ndim=3, kernels=[(5, 3, 3), (3, 3, 1)], strides=[(1, 1, 1), (2, 1, 2)], **arguments)
    flat, deep = from_slices(flat, deep, tmp_path)
    image, whole = views
    for expected, found in zip(flat(image).maps, deep(whole).maps, strict=True):
        torch.testing.assert_close(found[..., found.shape[-1] // 2], expected.mT, rtol=1e-3, atol=1e-3)


def test_so_does_a_patch_of_a_transformer(views, tmp_path):
    flat, deep = from_slices(ViT(patch=(4, 4), width=24, depth=1), ViT(patch=(4, 4, 5), width=24, depth=1), tmp_path)
    tokens = [
        encoder.patch_embed(patchify(image, encoder.patch)).mT.reshape(24, *grid)
        for encoder, image, grid in ((flat, views[0], (4, 6)), (deep, views[1], (6, 4, 4)))
    ]
    for plane in tokens[1].unbind(-1):
        torch.testing.assert_close(plane, tokens[0].mT, rtol=1e-3, atol=1e-3)


def test_kernels_whose_sides_are_not_those_of_the_slice_are_not_made_to_fit():
    kernel, wanted = torch.zeros(4, 1, 3, 5), torch.zeros(4, 1, 3, 5, 3)
    assert adapt_weight(kernel, wanted, is_first_layer=True, name="conv.weight", axes=(2, 3)) is None


# --- tables of positions


class Positioned(nn.Module):
    """What reads the image, and a table of a class token and a grid of patches."""

    def __init__(self, axes: int, rows: int) -> None:
        super().__init__()
        kind = nn.Conv2d if axes == 2 else nn.Conv3d
        self.proj = kind(1, 2, 2, bias=False)
        self.pos_embed = nn.Parameter(torch.randn(1, rows, 2))


def test_a_table_of_slices_stands_in_every_plane_of_a_volume(tmp_path):
    """Channel 0 holds the row (back to front), channel 1 the column (left-right)."""
    rows = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1).reshape(1, 16, 2)
    table = torch.cat((torch.tensor([[[7.0, 8.0]]]), rows), 1)
    found = resize_positions(table, 1 + 4**3, (2, 3))
    torch.testing.assert_close(found[:, :1], table[:, :1])
    x, y, _ = torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij")
    torch.testing.assert_close(found[:, 1:], torch.stack((y, x), -1).reshape(1, 64, 2))


def test_a_table_of_as_many_patches_of_a_slice_is_none_of_a_volume(tmp_path):
    """8 x 8 patches are as many as 4 x 4 x 4."""
    flat, deep = Positioned(2, 64), Positioned(3, 64)
    save_file(flat.state_dict(), tmp_path / "flat.safetensors")
    report = load(deep, tmp_path / "flat.safetensors")
    assert set(report.adapted) == {"proj.weight", "pos_embed"}
    assert torch.equal(deep.pos_embed, resize_positions(flat.pos_embed.detach(), 64, (2, 3)))
    grid = deep.pos_embed.detach().reshape(4, 4, 4, 2)
    assert torch.equal(grid[:, :, 0], grid[:, :, 3])


def test_a_table_of_a_volume_is_no_table_of_slices():
    table = torch.zeros(1, 64, 2)
    assert adapt_weight(table, torch.zeros(1, 64, 2), is_first_layer=False, name="pos_embed", axes=(3, 2)) is None
