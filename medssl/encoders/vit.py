"""Plain vision transformer for images and volumes (Dosovitskiy et al., ICLR 2021), as masked autoencoders use it.

Position embeddings are fixed sines and cosines of the place of a patch, in voxels or in mm. One set of weights
therefore takes images of any size that is a multiple of the patch. Hidden patches are left out ("drop", He et al.,
CVPR 2022) or replaced by a learned token ("fill", Xie et al., SimMIM, CVPR 2022).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional as F

from medssl.encoders.base import Encoder
from medssl.nn.sparse import checkpoint
from medssl.nn.transformer import gather_tokens, sincos_positions, transformer_blocks, visible_numbers
from medssl.ops.masking import at_resolution
from medssl.ops.patches import cells_of, patchify
from medssl.types import Features, MaskMode, UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

HEAD_WIDTH = 64  # channels of an attention head in the published sizes
MAPS = 4  # as many depths as decoders for transformers look at


class PatchEmbed(nn.Module):
    """Linear map from the voxels of a patch to a token; the weight has the name and shape of timm's convolution."""

    def __init__(self, in_channels: int, width: int, patch: Sequence[int]) -> None:
        super().__init__()
        convolution = nn.Conv2d if len(patch) == 2 else nn.Conv3d
        self.proj = convolution(in_channels, width, tuple(patch), stride=tuple(patch))  # type: ignore[arg-type]
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        bias = self.proj.bias
        assert bias is not None
        nn.init.zeros_(bias)

    def forward(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N C"]:
        """Maps rows of ``medssl.ops.patches.patchify`` to tokens."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class ViT(Encoder):
    """Vision transformer.

    ``tokens`` are the patch tokens after the last norm, in C order. ``maps`` are the patch tokens of up to four equally
    spaced depths, all at the stride of a patch; the last one is normalized. ``pooled`` is the mean of ``tokens``, or
    the class token. Parameters have the names of timm and of the published masked autoencoders, whose weights load.
    Their tables of positions are not loaded, since they hold the same sines and cosines.

    Linear layers start Xavier-uniform with biases of 0, learned tokens from a normal distribution of deviation 0.02
    (He et al., CVPR 2022). Attention heads have 64 channels each; a network narrower than 128 channels has one head.
    Under autocast, the residual stream keeps the parameters' number type.

    Args:
        in_channels: Channels of the image.
        patch: Voxels of a patch along each of the two or three axes. A patch is also the cell of a mask.
        width: Channels of a token: a multiple of 64, or any number below 128.
        depth: Number of blocks.
        drop_path: Probability of dropping a branch of the last block while training, 0 to below 1. It rises linearly
            from 0 at the first block. For fine-tuning, set ``optimizer.drop_path`` instead.
        registers: Number of learned tokens without a place (Darcet et al., ICLR 2024).
        pool: "mean": ``pooled`` is the mean of the patch tokens. "class": it is a learned class token.
        spacing_mm: Voxel spacing per axis, to measure positions in mm; None measures them in voxels. Set it where
            spacings differ between axes. Lengths are divided by the longest side of a patch, so that cubic patches
            have the coordinates 0, 1, 2, ...

    Raises:
        UserError: Arguments that do not fit each other.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        patch: Sequence[int] = (8, 8, 8),
        width: int = 384,
        depth: int = 12,
        drop_path: float = 0.0,
        registers: int = 0,
        pool: Literal["mean", "class"] = "mean",
        spacing_mm: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _refuse_misfits(patch, width, registers, pool, spacing_mm)
        self.ndims = frozenset({len(patch)})
        self.in_channels = in_channels
        self.patch = tuple(patch)
        self.depths = tuple(sorted({-(-depth * n // MAPS) for n in range(1, MAPS + 1)}))  # blocks done at each map
        self.channels = (width,) * len(self.depths)
        self.strides = (self.patch,) * len(self.depths)
        self.mask_modes: frozenset[MaskMode] = frozenset({"drop", "fill"})
        self.mask_cell = self.patch
        self.pool = pool
        spacing = (1.0,) * len(patch) if spacing_mm is None else spacing_mm
        sides = [side * mm for side, mm in zip(patch, spacing, strict=True)]
        self.step = tuple(side / max(sides) for side in sides)
        self.patch_embed = PatchEmbed(in_channels, width, patch)
        self.blocks = transformer_blocks(width, depth, max(1, width // HEAD_WIDTH), drop_path=drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mask_token = _learned(1, width)
        self.cls_token = _learned(1, width) if pool == "class" else None
        self.reg_token = _learned(registers, width) if registers else None
        self.extra = (pool == "class") + registers  # tokens before those of the patches

    def forward(
        self,
        image: Float[Tensor, "B C *s"],
        hidden: Bool[Tensor, "B *cells"] | None = None,
        mode: MaskMode | None = None,
    ) -> Features:
        """Encodes an image.

        Args:
            image: Images; every axis is a multiple of the patch.
            hidden: True where a cell is hidden.
            mode: "drop" leaves hidden patches out: there are tokens of the visible patches only, and no maps. "fill"
                puts the mask token in their places.

        Raises:
            UserError: The image or the mask does not fit, or samples hide different numbers of patches in mode "drop".
        """
        x = self.checked(image, hidden, mode)
        cells = cells_of(x.shape[2:], self.patch)
        covered = torch.zeros(len(x), *cells, dtype=torch.bool, device=x.device)
        if hidden is not None:
            covered = at_resolution(hidden.to(x.device), cells)
        patches = patchify(x, self.patch)
        positions = sincos_positions(cells, self.channels[-1], step=self.step, like=self.mask_token)
        positions = positions.expand(len(x), -1, -1)
        visible_cells = None
        if mode == "drop" and hidden is not None:
            visible_cells = visible_numbers(covered)
            patches, positions = gather_tokens(patches, visible_cells), gather_tokens(positions, visible_cells)
            covered = covered.flatten(1).gather(1, visible_cells)
        tokens = torch.where(covered.flatten(1)[..., None], self.mask_token, self.patch_embed(patches)) + positions
        block_outputs = self._run(tokens)
        outputs = [x[:, self.extra :] for x in block_outputs]
        outputs[-1] = self.norm(outputs[-1])
        pooled = self.norm(block_outputs[-1][:, 0]) if self.pool == "class" else outputs[-1].mean(1)
        maps = () if visible_cells is not None else tuple(x.mT.reshape(len(x), -1, *cells) for x in outputs)
        return Features(maps=maps, pooled=pooled, tokens=outputs[-1], visible_cells=visible_cells)

    def _run(self, tokens: Float[Tensor, "B N C"]) -> list[Float[Tensor, "B M C"]]:
        """Runs the blocks; returns all tokens (class and register tokens first) at the depths that become maps."""
        extra = [x.expand(len(tokens), -1, -1) for x in (self.cls_token, self.reg_token) if x is not None]
        x = torch.cat((*extra, tokens), 1)
        block_outputs = []
        for depth, block in enumerate(self.blocks, 1):
            x = checkpoint(block, x) if self.recompute and torch.is_grad_enabled() else block(x)
            if depth in self.depths:
                block_outputs.append(x)
        return block_outputs

    def parts(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def layers(self) -> dict[str, int]:
        """Number of the layer of each parameter: patch embedding and learned tokens are 0, each block is one more.

        The last norm is missing: it counts as part of the head.
        """
        layers = {}
        for name, _ in self.named_parameters():
            block = re.match(r"blocks\.(\d+)\.", name)
            if not name.startswith("norm."):
                layers[name] = int(block.group(1)) + 1 if block else 0
        return layers


def _learned(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(1, count, width), std=0.02))


def _refuse_misfits(
    patch: Sequence[int], width: int, registers: int, pool: str, spacing_mm: Sequence[float] | None
) -> None:
    """Refuses arguments that do not fit each other."""
    heads = max(1, width // HEAD_WIDTH)
    spacing = patch if spacing_mm is None else spacing_mm
    for holds, message in (
        (len(patch) in (2, 3) and min(patch) >= 1, f"patch {list(patch)}: expected two or three numbers, 1 or more"),
        (
            width >= 1 and width % heads == 0,
            f"width {width}: each attention head has {HEAD_WIDTH} channels, so expected a multiple of {HEAD_WIDTH}",
        ),
        (registers >= 0, f"registers {registers}: expected 0 or more"),
        (pool in ("mean", "class"), f'pool must be "mean" or "class", got "{pool}"'),
        (
            len(spacing) == len(patch) and min(spacing) > 0,
            f"spacing_mm {list(spacing)}: expected {len(patch)} numbers above 0, one for each axis of the patch",
        ),
    ):
        if not holds:
            raise UserError(message)
