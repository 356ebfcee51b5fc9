"""What tests of masked layers share."""

import torch
from torch import nn

from medssl.ops.masking import at_resolution


def spread(hidden, x):
    """The mask at the resolution of ``x``, for each of its values."""
    return at_resolution(hidden, x.shape[2:]).unsqueeze(1).expand_as(x)


def network(ndim=2, norm="batch"):
    """Two stages, stride 4, 8 channels at the end."""
    torch.manual_seed(0)
    conv, pool = (nn.Conv2d, nn.MaxPool2d) if ndim == 2 else (nn.Conv3d, nn.AvgPool3d)
    batch, instance = (nn.BatchNorm2d, nn.InstanceNorm2d) if ndim == 2 else (nn.BatchNorm3d, nn.InstanceNorm3d)
    kind = batch if norm == "batch" else lambda n: instance(n, affine=True)
    first = nn.Sequential(conv(1, 4, 3, padding=1), kind(4), nn.LeakyReLU(inplace=True), pool(2))
    second = nn.Sequential(conv(4, 8, 3, 2, padding=1), kind(8), nn.GELU())
    return nn.Sequential(first, second)
