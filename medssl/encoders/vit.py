"""Plain vision transformer for images and volumes (Dosovitskiy et al., ICLR 2021), as masked autoencoders use it.

Position embeddings are fixed sines and cosines of the place of a patch, in voxels or in mm; by option a learned table
that is interpolated (DINOv2), or rotations of queries and keys (DINOv3). One set of weights therefore takes images of
any size that is a multiple of the patch. Hidden patches are left out ("drop", He et al.,
CVPR 2022) or replaced by a learned token ("fill", Xie et al., SimMIM, CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import nn
from torch.nn import functional as F

from medssl.encoders.adapt import EXTRA_TOKENS
from medssl.encoders.token_encoder import TokenEncoder, learned
from medssl.nn.rotary import centered_tables, refuse_head_width
from medssl.nn.transformer import resampled, sincos_positions, transformer_blocks
from medssl.ops.limits import expect
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TOLERANCE = 5e-3  # of a sine in a table that may be stored in half precision
HEAD_WIDTH = 64  # channels of an attention head in the published sizes
Pool = Literal["mean", "class", "mean_beside_class"]
Place = Literal["sincos", "learned", "rotary"]


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


class ViT(TokenEncoder):
    """Vision transformer.

    ``tokens`` are the patch tokens after the last norm, in C order. ``maps`` are the patch tokens of up to four equally
    spaced depths, all at the stride of a patch; the last one is normalized. ``pooled`` is the mean of ``tokens``, or
    the class token. Parameters have the names of timm and of the published masked autoencoders, whose weights load.
    Their tables of positions are loaded with ``place`` "learned"; else tables that do not hold the same sines and
    cosines are refused.

    Linear layers start Xavier-uniform with biases of 0, learned tokens from a normal distribution of deviation 0.02
    (He et al., CVPR 2022). Attention heads have 64 channels each; a network narrower than 128 channels has one head.
    Under autocast, the residual stream keeps the parameters' number type.

    Args:
        in_channels: Channels of the image.
        width: Channels of a token: a multiple of 64, or any number below 128.
        depth: Number of blocks.
        layer_scale: Initial value of learned factors on the channels of every branch (LayerScale, Touvron et al.,
            ICCV 2021), such as 1e-5 as in DINOv2 or 0.1; None has no such factors.
        drop_path: Probability of dropping a branch of the last block while training, 0 to below 1. It rises linearly
            from 0 at the first block. For fine-tuning, set ``optimizer.drop_path`` instead.
        pool: "mean": ``pooled`` is the mean of the patch tokens. "class": it is a learned class token.
            "mean_beside_class": there is a class token, as in published masked autoencoders, and ``pooled`` is the mean
            of the patch tokens.
        place: What says where a patch lies: "sincos", fixed sines and cosines; "learned", a table, as in DINOv2; or
            "rotary", rotations of queries and keys by coordinates from -1 to 1, as in DINOv3.
        grid: Cells per axis of the learned table, or of the images that "sincos" was trained on: positions of other
            images are interpolated. None counts cells from the first one.
        tokens: Patch, registers and spacing (:class:`medssl.encoders.token_encoder.TokenEncoder`).

    Raises:
        UserError: Arguments that do not fit each other.
    """

    settings_of_tensors: ClassVar[Mapping[str, tuple[str, str]]] = MappingProxyType({
        "LayerScale": ("encoder.layer_scale", "1e-5"),
        "a class token": ("encoder.pool", "class or mean_beside_class"),
        "register tokens": ("encoder.registers", "{count}"),
        "a learned table of positions": ("encoder.place", "learned, with encoder.grid"),
    })  # fmt: skip
    aliases: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"register_tokens": "reg_token", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "storage_tokens": "reg_token"}
    )

    def __init__(
        self,
        in_channels: int = 1,
        *,
        width: int = 384,
        depth: int = 12,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        pool: Pool = "mean",
        place: Place = "sincos",
        grid: Sequence[int] | None = None,
        **tokens: Any,
    ) -> None:
        heads = max(1, width // HEAD_WIDTH)
        _refuse_misfits(width, heads, pool)
        expect(layer_scale is None or layer_scale > 0, "layer_scale", layer_scale, "above 0, or null for none")
        super().__init__(in_channels, width=width, depth=depth, **tokens)
        _refuse_place(place, grid, self.patch, width // heads)
        self.pool, self.place, self.grid = pool, place, None if grid is None else tuple(grid)
        self.heads = heads
        self.patch_embed = PatchEmbed(in_channels, width, self.patch)
        self.blocks = transformer_blocks(width, depth, heads, drop_path=drop_path, layer_scale=layer_scale)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        registers = tokens.get("registers", 0)
        if place == "rotary":
            for layer in self.modules():
                if isinstance(layer, nn.LayerNorm):
                    layer.eps = 1e-5  # as DINOv3
        self.cls_token = None if pool == "mean" else learned(1, width)
        self.reg_token = learned(registers, width) if registers else None
        self.pos_embed = learned(prod(self.grid), width) if place == "learned" and self.grid else None

    def embed(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N C"]:
        """Maps voxels of patches to tokens."""
        tokens: Tensor = self.patch_embed(patches)
        return tokens

    def positions(self, cells: Sequence[int]) -> Float[Tensor, "N C"]:
        """Sines and cosines of the places of the cells, or the learned table on their grid; 0 for rotary positions."""
        width = self.channels[-1]
        if self.place == "rotary":
            return self.mask_token.new_zeros(prod(cells), width)
        if self.pos_embed is None or self.grid is None:
            return sincos_positions(cells, width, step=self.step, like=self.mask_token, grid=self.grid)
        table = self.pos_embed.mT.reshape(1, width, *self.grid)
        return resampled(table, cells).flatten(2).mT[0]

    def rotations(self, cells: Sequence[int]) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]] | None:
        """Cosines and sines by which the cells of a grid turn queries and keys, with rotary positions."""
        if self.place != "rotary":
            return None
        return centered_tables(cells, self.channels[-1] // self.heads, like=self.mask_token)

    def computes_positions(self, table: Float[Tensor, "1 N C"]) -> bool:
        """Whether a table holds the sines and cosines of a grid, after rows of zeros for tokens without a place."""
        if self.place != "sincos":
            return False
        ndim, rows = len(self.patch), table.shape[1]
        for extra in EXTRA_TOKENS:
            side = round(max(0, rows - extra) ** (1 / ndim))
            if side and side**ndim == rows - extra and table.shape[2] == self.channels[-1]:
                expected = sincos_positions((side,) * ndim, table.shape[2], step=self.step)
                of_cells = (table[0, extra:].float().cpu() - expected).abs().amax()
                return bool(of_cells < TOLERANCE) and not bool((table[0, :extra].abs() > TOLERANCE).any())
        return False

    @property
    def placeless(self) -> list[Tensor]:
        """Class token, then registers."""
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    def parts(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def normalize(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The norm after the last block."""
        normalized: Tensor = self.norm(tokens)
        return normalized

    def pooled(self, placeless: Float[Tensor, "B M C"], tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B C"]:
        """The class token, or the mean of the patch tokens."""
        return self.normalize(placeless[:, 0]) if self.pool == "class" else tokens.mean(1)


def _refuse_place(place: str, grid: Sequence[int] | None, patch: Sequence[int], head_width: int) -> None:
    """Refuses positions that do not fit the other arguments."""
    expect(place in get_args(Place), "encoder.place", place, "sincos, learned or rotary")
    if grid is not None and (len(grid) != len(patch) or min(grid) < 1):
        message = "does not fit the patch"
        raise UserError(message, key="encoder.grid", got=list(grid), expected=f"{len(patch)} numbers, 1 or more each")
    if (place == "learned" and grid is None) or (place == "rotary" and grid is not None):
        message = f"encoder.place {place} {'needs the cells of its table' if grid is None else 'has no table'}"
        hint = "Set it to the cells per axis of the training, such as 37,37." if grid is None else "Leave it out."
        raise UserError(message, key="encoder.grid", got=grid, hint=hint)
    if place == "rotary":
        refuse_head_width(head_width, 1, len(patch))


def _refuse_misfits(width: int, heads: int, pool: str) -> None:
    """Refuses arguments that do not fit each other."""
    if width < 1 or width % heads:
        message = (
            f"width {width}: each attention head has {HEAD_WIDTH} channels, so expected a multiple of {HEAD_WIDTH}"
        )
        raise UserError(message)
    if pool not in get_args(Pool):
        message = f'pool must be "mean", "class" or "mean_beside_class", got "{pool}"'
        raise UserError(message)
