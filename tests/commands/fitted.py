"""Fine-tuned networks whose answers are known beforehand, as run folders."""

from __future__ import annotations

import torch

from medssl.encoders.base import Encoder
from medssl.heads.base import Head, Network
from medssl.heads.weights import save_network
from medssl.types import Card, Features, Imported, IntensityRule, IntensityRules, LabelSchema, Preprocess, Tuned
from medssl.types.provenance import Provenance

TISSUES = LabelSchema("mask", ((0, "background"), (5, "tissue"), (9, "bone")))
KINDS = LabelSchema("diagnosis", ((0, "dark"), (1, "bright")))
AS_IS = IntensityRule("none", normalize="none")
RAW = Preprocess(background=0.0, intensity=IntensityRules(AS_IS, AS_IS, AS_IS, AS_IS))  # the network sees stored values


class Plain(Encoder):
    """Hands the image on as its only map."""

    def __init__(self, ndim: int = 3, in_channels: int = 1) -> None:
        super().__init__()
        self.ndims, self.in_channels = frozenset({ndim}), in_channels
        self.channels, self.strides = (in_channels,), ((1,) * ndim,)
        self.mask_modes, self.mask_cell = frozenset(), (4,) * ndim
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, image, hidden=None, mode=None):
        image = self.checked(image, hidden, mode)
        return Features(maps=(image,), pooled=image.flatten(2).mean(2))


class Bands(Head):
    """Class 1 above 100, class 2 above 500 (mean over the channels)."""

    kind = "segmentation"

    def __init__(self, encoder, schema, *, level: float = 1.0) -> None:
        super().__init__()
        self.schema = schema
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, features, size):
        value = features.maps[0].mean(1)
        return torch.stack([0 * value, value - 100, 2 * value - 600], 1) * self.level

    def counts(self, target):
        raise NotImplementedError

    def loss(self, prediction, target, counts=None):
        raise NotImplementedError


class Sides(Bands):
    """Class 1 in the second half of the columns of the window, class 2 nowhere."""

    def forward(self, features, size):
        column = torch.arange(size[-1]).expand(len(features.pooled), *size) - size[-1] / 2 + 0.5
        return torch.stack([-column, column, -1e3 + 0 * column], 1)


class Mean(Head):
    """Bright where the mean of the window is above 100: the logarithm of the odds is a hundredth of the difference."""

    kind = "classification"

    def __init__(self, encoder, schema) -> None:
        super().__init__()
        self.schema = schema
        self.shift = torch.nn.Parameter(torch.zeros(1))

    def forward(self, features, size):
        odds = (features.pooled.mean(1) - 100) / 100
        return torch.stack([0 * odds, odds], 1) + self.shift

    def counts(self, target):
        raise NotImplementedError

    def loss(self, prediction, target, counts=None):
        raise NotImplementedError


def bands(array):
    """The answer of ``Bands`` in stored values."""
    return 5 * (array > 100).astype(int) + 4 * (array > 500)


def save(folder, head=Bands, *, schema=TISSUES, window=(8, 8, 8), preprocess=RAW, subjects=(), **more):
    """A run folder; ``more``: slice_axis, channels, seen (in pretraining), trained_on, arguments of the head."""
    trained_on = more.pop("trained_on", None)
    slice_axis, channels, seen = more.pop("slice_axis", 2), more.pop("channels", 1), more.pop("seen", Provenance())
    ndim = len(window)
    encoder = Imported("commands.fitted.Plain", {"ndim": ndim, "in_channels": channels})
    tuned = Tuned(
        Imported(f"commands.fitted.{head.__name__}", more), schema, window, slice_axis, tuple(subjects), trained_on
    )
    card = Card(encoder, preprocess, None, "made", seen, 7, {"medssl": "0"}, tuned)
    made = Plain(ndim, channels)
    save_network(folder, Network(made, head(made, schema, **more)), card)
    return folder
