"""Every shipped encoder fragment fits a shipped SparK fragment, in its own number of axes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import yaml
from objectives.small import CONFIGS, view_spec

from medssl.objectives.spark import SparK
from medssl.types import UserError, ViewSpec

ENCODERS = sorted((CONFIGS / "encoders").glob("*.yaml"))


def build(path: Path):
    """The class of a fragment with its arguments, without memory for the weights."""
    fragment = yaml.safe_load(path.read_text())
    module, name = fragment["class_path"].rsplit(".", 1)
    with torch.device("meta"):
        return getattr(importlib.import_module(module), name)(**fragment["init_args"])


@pytest.mark.parametrize("path", ENCODERS, ids=lambda path: path.stem)
def test_every_encoder_fits_the_objective_of_its_axes(path):
    encoder = build(path)
    (ndim,) = encoder.ndims
    if "sparse" not in encoder.mask_modes:
        assert encoder.mask_modes == {"drop", "fill"}  # a transformer, which SparK refuses in one line
        with pytest.raises(UserError, match='has mask modes: drop, fill; SparK needs an encoder with "sparse"'):
            SparK(encoder, view=ViewSpec(size=tuple(4 * side for side in encoder.mask_cell)))
        return
    arguments = dict(yaml.safe_load((CONFIGS / "objectives" / f"spark_{ndim}d.yaml").read_text())["init_args"])
    arguments["view"] = view_spec(arguments["view"])
    with torch.device("meta"):
        objective = SparK(encoder, **arguments)
    assert objective.cell == encoder.mask_cell
    assert objective.mask_ratio == (0.6 if ndim == 2 else 0.75)
    # at least 8 visible cells, so that statistics over them mean something
    assert round(torch.Size(objective.cells).numel() * (1 - objective.mask_ratio)) >= 8


def test_the_names_that_recipes_use_are_there():
    assert {path.stem for path in ENCODERS} >= {
        *("resenc_small_3d", "resenc_3d", "resenc_small_2d", "resenc_2d", "resenc_acdc"),
        *("timm_resnet18", "timm_resnet50", "timm_convnext_small"),
        *("vit_small_2d", "vit_small_3d", "vit_base_2d", "vit_3d"),
    }
