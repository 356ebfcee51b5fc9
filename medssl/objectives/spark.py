r"""SparK: masked image modeling for convolutional networks, on images and volumes.

Predicts: hidden cells of an image, with a convolutional encoder (Tian et al. 2023).
Encoders: residual encoder, timm ResNet and ConvNeXt.

With cells :math:`c` of the image, hidden set :math:`M` drawn per sample, encoder :math:`f`, decoder :math:`g`::

    z      = f(x visible)                       sparse: hidden positions are 0 at every scale
    d_i    = project_i(norm_i(z_i), token_i at hidden positions)                 coarse to fine
    y      = g(d_0, d_1, ...)
    t_cj   = (x_cj - mean_c) / sqrt(max(var_c, (0.01 std_x)^2) + 1e-6)           voxel j of cell c
    loss   = sum_{c in M, j scored} (y_cj - t_cj)^2  /  number of terms

Reference: Tian et al., Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling, ICLR 2023,
arXiv 2301.03580. ``docs/objectives/spark.md`` lists the differences from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import nn

from medssl.nn.decoders import Densify, HiddenTokens, LightDecoder, NormName, upsampling_path
from medssl.nn.unet import UNetDecoder
from medssl.objectives.base import Reconstruction
from medssl.types import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from medssl.encoders.base import Encoder
    from medssl.types import Features, ViewSpec


class SparK(Reconstruction):
    """SparK: hides cells of one view from a convolutional encoder and reconstructs them from the visible ones.

    Args:
        encoder: Encoder with the mask mode "sparse".
        view: The view; its size must be a multiple of the encoder's stride and of ``cell``.
        mask_ratio: Share of cells to hide, above 0 and below 1; None takes 0.6 (2D, as published) or 0.75 (3D).
        cell: Voxels of one cell per axis; None takes the encoder's ``mask_cell``.
        decoder_width: Channels of the decoder at the coarsest map. None takes 48 (2D) or 16 (3D) at the last step, and
            doubles it for each earlier step (768 for a stride of 32 in 2D, as published). For the light decoder only.
        normalize_target: Predict each cell relative to its own mean and deviation; False predicts the voxel values.
        norm: Normalization before the tokens and in the decoder. None takes "batch" in 2D, and "instance" in 3D, where
            batches are small. "layer" is for encoders with layer norms; the light decoder then has batch norms. A U-Net
            decoder takes "instance" for None, like the head.
        decoder: "light": the published decoder, which is discarded. "unet": the decoder of the U-Net head. It is
            exported, and fine-tuning with the head ``unet`` starts from it.

    Raises:
        UserError: The encoder does not support "sparse", the view does not fit it, or the decoder is not known.
    """

    mode = "sparse"

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: ViewSpec,
        mask_ratio: float | None = None,
        cell: Sequence[int] | None = None,
        decoder_width: int | None = None,
        normalize_target: bool = True,
        norm: NormName | None = None,
        decoder: Literal["light", "unet"] = "light",
    ) -> None:
        volume = len(view.size) == 3
        ratio = (0.75 if volume else 0.6) if mask_ratio is None else mask_ratio
        super().__init__(encoder, view=view, mask_ratio=ratio, cell=cell, normalize_target=normalize_target)
        if decoder not in ("light", "unet"):
            message = "there is no such decoder"
            raise UserError(message, key="objective.decoder", got=decoder, expected="light or unet")
        if decoder == "unet":
            self._make_unet(decoder_width, norm or "instance")
        else:
            self._make_light(decoder_width, norm or ("instance" if volume else "batch"))

    def _make_light(self, decoder_width: int | None, norm: NormName) -> None:
        """Makes the published decoder, which gets all maps but those of a stem, normalized and projected."""
        encoder, axes = self.encoder, len(self.cells)
        path = upsampling_path(encoder.strides, first=encoder.stem_maps)
        width = (16 if axes == 3 else 48) * 2 ** (len(path) - 1) if decoder_width is None else decoder_width
        self.decoder: LightDecoder | UNetDecoder = LightDecoder(
            width,
            [factor for factor, _ in path],
            out_channels=encoder.in_channels,
            norm="instance" if norm == "instance" else "batch",
        )
        entering = [(number, width) for (_, number), width in zip(path, self.decoder.widths, strict=True)]
        self.densify: Densify | HiddenTokens = Densify(encoder.channels, entering, norm=norm, ndim=axes)
        self.predict: nn.Module = nn.Identity()  # the last layer of the decoder

    def _make_unet(self, decoder_width: int | None, norm: NormName) -> None:
        """Makes the decoder of the U-Net head, which gets the maps as the encoder returns them."""
        if decoder_width is not None:
            message = "a U-Net decoder takes its channels from the encoder"
            raise UserError(message, key="objective.decoder_width", got=decoder_width, expected="null")
        encoder = self.encoder
        self.decoder = UNetDecoder(encoder.channels, encoder.strides, norm=norm)
        used = {len(encoder.channels) - 1, *(number for number in self.decoder.joined if number is not None)}
        self.densify = HiddenTokens(encoder.channels, sorted(used))
        convolution = nn.Conv3d if len(self.cells) == 3 else nn.Conv2d
        self.predict = convolution(self.decoder.widths[-1], encoder.in_channels, 1)
        nn.init.trunc_normal_(self.predict.weight, std=0.02)

    def reconstruct(
        self, image: Float[Tensor, "B C *s"], hidden: Bool[Tensor, "B *cells"]
    ) -> tuple[Float[Tensor, "B C *s"], Features]:
        """Encodes the visible cells, fills the maps with tokens, and decodes."""
        features = self.encoder(image, hidden, mode="sparse")
        decoded = self.decoder(self.densify(features.maps, hidden))
        return self.predict(decoded[-1] if isinstance(self.decoder, UNetDecoder) else decoded), features

    def exported(self) -> dict[str, nn.Module]:
        """The encoder, and a U-Net decoder, which a U-Net head can start from."""
        modules: dict[str, nn.Module] = {"encoder": self.encoder}
        return modules | ({"decoder": self.decoder} if isinstance(self.decoder, UNetDecoder) else {})

    def filled_modules(self) -> tuple[nn.Module, ...]:
        """A U-Net decoder, which sees tokens. The statistics of the encoder are those of visible positions."""
        return (self.decoder,) if isinstance(self.decoder, UNetDecoder) else ()

    def encode_whole(self, image: Float[Tensor, "B C *s"]) -> None:
        """Encodes and decodes whole images."""
        self.decoder(self.encoder(image).maps)
