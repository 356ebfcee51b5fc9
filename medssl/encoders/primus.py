"""Primus (Wald et al., 2025, arXiv 2503.01835): a transformer of small patches whose segmentations need its attention.

Small patches, a gated MLP, rotary positions beside a learned table, and a light decoder of transposed convolutions (the
head ``patch_decoder``). The keys of weights are those of dynamic-network-architectures, so that nnU-Net's and nnssl's
networks load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from medssl.encoders.token_encoder import TokenEncoder, learned
from medssl.nn.rotary import RotaryBlock, refuse_head_width, rotary_tables
from medssl.ops.limits import expect
from medssl.ops.patches import cells_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Primus(TokenEncoder):
    """Primus, for volumes and images.

    ``tokens`` are the patch tokens after the last norm, in C order. ``maps`` are the patch tokens of up to four equally
    spaced depths, all at the stride of a patch; the last one is normalized. ``pooled`` is the mean of ``tokens``.

    Windows may have other sizes than the view of pretraining. Rotary positions count cells, so that distances stay what
    they were; the learned table is interpolated, as nnU-Net does where it fine-tunes such weights.

    Args:
        in_channels: Channels of the image.
        width: Channels of a token. Each head must have a multiple of 6 channels for volumes, of 4 for images.
        heads: Number of attention heads; must divide ``width``.
        size: Voxels of the view per axis for which a learned table of positions is made, a multiple of the patch; None
            has no table, but rotary positions alone.
        layer_scale: Initial value of learned factors on the channels of every branch, 0.1 in nnssl; None has none.
        drop_path: Probability of dropping a branch of the last block while training, 0 to below 1. It rises linearly
            from 0 at the first block. For fine-tuning, set ``optimizer.drop_path`` instead.
        attention_dropout: Probability of dropping a weight of the attention while training, 0 to below 1.
        attention_norm: Normalize the attended values before they are projected, as nnssl does.
        tokens: Patch, depth, registers and spacing (:class:`medssl.encoders.token_encoder.TokenEncoder`).

    Raises:
        UserError: Arguments that do not fit each other.
    """

    inner: ClassVar[str] = "eva."
    settings_of_tensors: ClassVar[Mapping[str, tuple[str, str]]] = MappingProxyType({
        "LayerScale": ("encoder.layer_scale", "0.1"),
        "register tokens": ("encoder.registers", "{count}"),
        "a learned table of positions": ("encoder.size", "the view of pretraining, such as 160,160,160"),
        "a norm inside the attention": ("encoder.attention_norm", "true"),
    })  # fmt: skip

    def __init__(
        self,
        in_channels: int = 1,
        *,
        width: int = 396,
        heads: int = 6,
        size: Sequence[int] | None = None,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        attention_dropout: float = 0.0,
        attention_norm: bool = False,
        **tokens: Any,
    ) -> None:
        super().__init__(in_channels, width=width, **tokens)
        refuse_head_width(width, heads, len(self.patch))
        expect(layer_scale is None or layer_scale > 0, "layer_scale", layer_scale, "above 0, or null for none")
        expect(0 <= drop_path < 1, "drop_path", drop_path, "from 0 to below 1")
        expect(0 <= attention_dropout < 1, "attention_dropout", attention_dropout, "from 0 to below 1")
        self.cells = None if size is None else cells_of(size, self.patch, noun="for the encoder's patch, encoder size")
        self.head_width = width // heads
        registers, depth = tokens.get("registers", 0), self.depth
        self.down_projection = PatchConvolution(in_channels, width, self.patch)
        self.eva = nn.Module()
        self.eva.blocks = nn.ModuleList(
            RotaryBlock(
                width,
                heads,
                attention_dropout=attention_dropout,
                attention_norm=attention_norm,
                drop_path=drop_path * number / max(1, depth - 1),
                layer_scale=layer_scale,
            )
            for number in range(depth)
        )
        self.eva.norm = nn.LayerNorm(width)
        table = None
        if self.cells is not None:
            rows = torch.empty(1, registers + math.prod(self.cells), width)
            table = nn.Parameter(nn.init.trunc_normal_(rows, std=0.02))
        self.eva.register_parameter("pos_embed", table)
        self.register_tokens = learned(registers, width, std=1e-6) if registers else None
        _initialize(self.eva)

    def embed(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N C"]:
        """Maps voxels of patches to tokens."""
        tokens: Tensor = self.down_projection(patches)
        return tokens

    def positions(self, cells: Sequence[int]) -> Float[Tensor, "N C"]:
        """The learned table, interpolated to other grids than its own; zeros without a table."""
        table = self._table()
        if table is None or self.cells is None:
            return self.mask_token.new_zeros(math.prod(cells), self.channels[-1])
        rows = table[0, table.shape[1] - math.prod(self.cells) :]
        if tuple(cells) == self.cells:
            return rows
        grid = rows.mT.reshape(1, -1, *self.cells)
        mode = "trilinear" if len(cells) == 3 else "bilinear"
        return F.interpolate(grid, tuple(cells), mode=mode).flatten(2)[0].mT

    def rotations(self, cells: Sequence[int]) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
        """Cosines and sines of the cells' coordinates."""
        return rotary_tables(cells, self.head_width, step=self.step, like=self.mask_token)

    @property
    def placeless(self) -> list[Tensor]:
        """The registers; with a table, their rows of it are added, as dynamic-network-architectures does."""
        if self.register_tokens is None:
            return []
        table = self._table()
        tokens = self.register_tokens
        return [tokens if table is None else tokens + table[:, : tokens.shape[1]]]

    def parts(self) -> list[nn.Module]:
        """The blocks."""
        blocks: Any = self.eva.blocks
        return list(blocks)

    def normalize(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The norm after the last block."""
        norm: Any = self.eva.norm
        normalized: Tensor = norm(tokens)
        return normalized

    def _table(self) -> Tensor | None:
        table: Any = self.eva.pos_embed
        assert table is None or isinstance(table, nn.Parameter)
        return table


class PatchConvolution(nn.Module):
    """Linear map from the voxels of a patch to a token, initialized as nnU-Net's convolutions are."""

    def __init__(self, in_channels: int, width: int, patch: Sequence[int]) -> None:
        super().__init__()
        convolution = nn.Conv2d if len(patch) == 2 else nn.Conv3d
        self.proj = convolution(in_channels, width, tuple(patch), stride=tuple(patch))  # type: ignore[arg-type]
        nn.init.kaiming_normal_(self.proj.weight, a=1e-2)
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N C"]:
        """Maps rows of ``medssl.ops.patches.patchify`` to tokens."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def _initialize(eva: nn.Module) -> None:
    """Weights of deviation 0.02 and biases of 0; the last layers of branches start smaller from block to block."""
    for module in eva.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    blocks: Any = eva.blocks
    with torch.no_grad():
        for number, block in enumerate(blocks, 1):
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.div_(math.sqrt(2.0 * number))
