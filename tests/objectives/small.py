"""Small encoders and objectives for the tests: in 3D with sides per axis, and instance instead of batch norm."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path

import torch
import yaml

from medssl.encoders.resenc import ResEnc
from medssl.encoders.vit import ViT
from medssl.io.typed_json import build
from medssl.objectives.graph_match import Graphs
from medssl.objectives.mae import MAE, UNetMAE
from medssl.objectives.simmim import SimMIM
from medssl.objectives.spark import SparK
from medssl.types import Batch, Geometry, Imported, Intensity, Origin, Sampling, View, ViewSpec

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = {2: (32, 48), 3: (16, 24, 12)}
LOCAL = {2: (16, 24), 3: (8, 12, 6)}
PATCHES = {2: (8, 6), 3: (8, 6, 2)}
# arguments of the shipped configurations that small encoders ask for
SMALL = {
    "steps": 2, "projection": [16, 8], "decoder_width": 32, "decoder_depth": 1,
    "graphs": Graphs(4, 2), "sampling": Sampling(regions_per_scan=2),
    "local_views": 2, "slices": 32, "predictor_width": 32, "predictor_depth": 1,
    "prediction": 16, "queue": 256,
}  # fmt: skip


def encoder(ndim: int, *, in_channels: int = 1, norm: str | None = None, **arguments) -> ResEnc:
    """Stride 8 in 2D; 4, 4 and 2 in 3D."""
    strides = [(1, 1), (2, 2), (2, 2), (2, 2)] if ndim == 2 else [(1, 1, 1), (2, 2, 1), (2, 2, 2)]
    channels = (6, 8, 10, 12)[: len(strides)]
    norm = norm or ("batch" if ndim == 2 else "instance")
    blocks = [1] * len(strides)
    return ResEnc(in_channels, ndim=ndim, channels=channels, strides=strides, blocks=blocks, norm=norm, **arguments)


def vit(ndim: int, **arguments) -> ViT:
    """Patches with a side per axis; in 3D with a register, and positions in mm."""
    extras = {"registers": 1, "spacing_mm": (1.0, 2.0, 3.0)} if ndim == 3 else {}
    return ViT(**{"patch": PATCHES[ndim], "width": 32, "depth": 2} | extras | arguments)


def spark(ndim: int, *, in_channels: int = 1, encoder_norm: str | None = None, **arguments) -> SparK:
    arguments.setdefault("decoder_width", 32)
    view = arguments.pop("view", ViewSpec(size=SIZES[ndim]))
    return SparK(encoder(ndim, in_channels=in_channels, norm=encoder_norm), view=view, **arguments)


def mae(ndim: int, *, in_channels: int = 1, **arguments) -> MAE:
    view = arguments.pop("view", ViewSpec(size=SIZES[ndim]))
    return MAE(vit(ndim, in_channels=in_channels), view=view, **{"decoder_width": 32, "decoder_depth": 1} | arguments)


def unet_mae(ndim: int, *, in_channels: int = 1, **arguments) -> UNetMAE:
    return UNetMAE(encoder(ndim, in_channels=in_channels), view=ViewSpec(size=SIZES[ndim]), **arguments)


def simmim(ndim: int, *, in_channels: int = 1, **arguments) -> SimMIM:
    return SimMIM(vit(ndim, in_channels=in_channels), view=ViewSpec(size=SIZES[ndim]), **arguments)


def from_config(path: str, ndim: int):
    """The objective of a shipped configuration around a small encoder, with views of another size."""
    fragment = Imported(**yaml.safe_load(Path(path).read_text()))
    module, name = fragment.class_path.rsplit(".", 1)
    kind, arguments = getattr(importlib.import_module(module), name), dict(fragment.init_args)
    parameters = inspect.signature(kind).parameters
    for key, value in arguments.items():
        if key == "view" or key.endswith("_view"):
            arguments[key] = view_spec({**value, "size": (LOCAL if key == "local_view" else SIZES)[ndim]})
        elif dataclasses.is_dataclass(default := parameters[key].default):
            arguments[key] = build(type(default), value, "preset")
    if "prototypes" in arguments:
        arguments["prototypes"] = dataclasses.replace(arguments["prototypes"], count=16, width=8, hidden=16)
    if "clusters" in arguments:
        arguments["clusters"] = dataclasses.replace(arguments["clusters"], count=8, queue=8)
    if kind.progress == "unexplained":  # targets that settle at once; centers take more steps than the suite does
        arguments["teaching"] = dataclasses.replace(arguments["teaching"], assignment="sinkhorn")
    by_tokens = getattr(kind, "mode", None) in ("drop", "fill") or (kind.progress == "unexplained" and ndim == 3)
    small = vit(ndim) if by_tokens else encoder(ndim)
    if "cell" in arguments:
        arguments["cell"] = [min(2 * side, SIZES[ndim][axis]) for axis, side in enumerate(small.mask_cell)]
    return kind(small, **arguments | {key: SMALL[key] for key in SMALL if key in arguments})


def view_spec(values: dict) -> ViewSpec:
    nested = {"geometry": Geometry, "intensity": Intensity}
    parts = {key: nested[key](**value) if key in nested else value for key, value in values.items()}
    return ViewSpec(**{key: tuple(value) if isinstance(value, list) else value for key, value in parts.items()})


def randomize(module: torch.nn.Module) -> None:
    """Weights, biases and affine parameters away from the values of their initialization."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def plain_batch(images: torch.Tensor, samples: tuple[int, ...]) -> Batch:
    """Images as a batch with one view, everything valid, scored and present."""
    rows, channels, *size = images.shape
    ndim = len(size)
    identity = torch.eye(ndim + 1).expand(rows, -1, -1)
    view = View(
        image=images,
        affine=identity,
        world_affine=identity,
        spacing_mm=torch.ones(rows, ndim),
        source_shape=torch.tensor(size).expand(rows, ndim),
        valid=torch.ones(rows, 1, *size, dtype=torch.bool),
        scored=torch.ones(rows, 1, *size, dtype=torch.bool),
        present=torch.ones(rows, channels, dtype=torch.bool),
    )
    names = tuple(map(str, samples))
    return Batch((view,), Origin(names, names, samples, torch.full((rows, ndim), 0.5), torch.full((rows,), 0.5)))
