"""Every shipped encoder fragment fits the masked modeling that it can be masked for, in its own number of axes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import yaml
from objectives.small import CONFIGS, view_spec
from views.made import raw_crops

from medssl.objectives.spark import SparK
from medssl.types import UserError, ViewPlan, ViewSpec
from medssl.views.plan import make_batch, read_size

ENCODERS = sorted((CONFIGS / "encoders").glob("*.yaml"))


def build(path: Path):
    """The class of a fragment with its arguments, without memory for the weights."""
    fragment = yaml.safe_load(path.read_text())
    with torch.device("meta"):
        return class_of(fragment)(**fragment["init_args"])


def class_of(fragment: dict) -> type:
    module, name = fragment["class_path"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


OBJECTIVES = {"sparse": ("spark_{}d", "mae_resenc_{}d"), "drop": ("mae_{}d",), "fill": ("simmim_{}d",)}


@pytest.mark.parametrize("path", ENCODERS, ids=lambda path: path.stem)
def test_every_encoder_fits_the_objectives_of_its_masks_and_axes(path):
    encoder = build(path)
    (ndim,) = encoder.ndims
    assert encoder.mask_modes in ({"sparse"}, {"drop", "fill"})
    for name in (name.format(ndim) for mode in sorted(encoder.mask_modes) for name in OBJECTIVES[mode]):
        fragment = yaml.safe_load((CONFIGS / "objectives" / f"{name}.yaml").read_text())
        arguments = dict(fragment["init_args"])
        arguments["view"] = view_spec(arguments["view"])
        if "cell" in arguments and encoder.mask_cell == (14, 14):  # a user sets cells of whole patches
            arguments["cell"] = [28, 28]
        with torch.device("meta"):
            objective = class_of(fragment)(encoder, **arguments)
        assert objective.cell == tuple(arguments.get("cell", encoder.mask_cell))
        assert objective.mask_ratio == arguments["mask_ratio"]
        # at least 8 visible cells, so that statistics over them mean something
        assert round(torch.Size(objective.cells).numel() * (1 - objective.mask_ratio)) >= 8


AREAS = {  # of the image, as published or as the page of the objective says
    "mae_cxr": (0.5, 1.0), "mae_2d": (0.5, 1.0), "mae_resenc_2d": (0.5, 1.0), "simmim_2d": (0.67, 1.0),
    "spark_2d": (0.67, 1.0), "simclr_2d": (0.2, 1.0), "graph_match_2d": (0.2, 1.0),
    "dino_2d": (0.4, 1.0), "ibot_2d": (0.32, 1.0), "dinov2_2d": (0.32, 1.0),
    "lejepa_2d": (0.3, 1.0), "ijepa_2d": (0.3, 1.0),
    "masked_distillation_2d": (0.32, 1.0), "masked_distillation_2d_small": (0.32, 1.0),
    "mae_2d_small": (0.5, 1.0), "simmim_2d_small": (0.67, 1.0), "spark_2d_small": (0.67, 1.0),
    "simclr_2d_small": (0.2, 1.0), "graph_match_2d_small": (0.2, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("stored", [(256, 256), (320, 240)], ids=str)
@pytest.mark.parametrize("name", AREAS)
def test_views_show_the_published_share_of_images_of_any_size(name, stored):
    recipe = CONFIGS / "recipes" / f"{name}.yaml"
    small = yaml.safe_load(recipe.read_text())["objective"] if name.endswith("small") else {"base": name}
    fragment = yaml.safe_load((CONFIGS / "objectives" / f"{small['base']}.yaml").read_text())
    view = view_spec(fragment["init_args"]["view"] | small.get("init_args", {}).get("view", {}))
    size = read_size(ViewPlan((view,)), None, torch.tensor([stored]))
    batch = make_batch(raw_crops(torch.zeros(300, 1, *size), source=stored), ViewPlan((view,)), seed=0, device="cpu")
    factors = batch.views[0].affine[:, :2, :2].norm(dim=1)  # stored pixels per pixel of the view
    scaled = (factors - 1).abs().amax(dim=1) > 1e-6
    assert float(scaled.float().mean()) == pytest.approx(view.geometry.probability, abs=0.08)
    areas = (factors * torch.tensor(view.size) / torch.tensor(stored)).clamp(max=1).prod(dim=1)[scaled]
    least, most = AREAS[name]
    assert least - 0.01 < areas.min() < least + 0.05
    assert most - 0.05 < areas.max() < most + 0.01


PAIRS = ("simclr_3d", "graph_match_3d", "masked_distillation_3d", "global_contrast_3d")
TOUCHED = {  # probability of a rotation or a scale: contrast 1, reconstruction 0.2
    1.0: (*PAIRS, "simclr_2d", "graph_match_2d", "masked_distillation_2d", "global_contrast_2d"),
    0.2: (
        "spark_3d",
        "mae_3d",
        "mae_resenc_3d",
        "simmim_3d",
        "spark_2d",
        "mae_2d",
        "mae_cxr",
        "mae_resenc_2d",
        "simmim_2d",
    ),
}


def test_presets_touch_as_many_crops_as_is_said_and_pairs_overlap():
    for probability, names in TOUCHED.items():
        for name in names:
            fragment = yaml.safe_load((CONFIGS / "objectives" / f"{name}.yaml").read_text())["init_args"]["view"]
            view = view_spec(fragment)
            assert view.geometry.probability == probability, name
            assert view.min_overlap == (0.5 if name in PAIRS else 0.0), name
    for path in sorted((CONFIGS / "recipes").glob("segment_*.yaml")):
        assert yaml.safe_load(path.read_text())["data"]["view"]["geometry"]["probability"] == 0.2, path.stem


def test_transformers_are_refused_by_spark_in_one_line():
    encoder = build(CONFIGS / "encoders" / "vit_small_2d.yaml")
    with pytest.raises(UserError, match='has mask modes: drop, fill; SparK needs an encoder with "sparse"'):
        SparK(encoder, view=ViewSpec(size=(64, 64)))


def test_the_names_that_recipes_use_are_there():
    assert {path.stem for path in ENCODERS} >= {
        *("resenc_small_3d", "resenc_3d", "resenc_small_2d", "resenc_2d", "resenc_acdc"),
        *("timm_resnet18", "timm_resnet50", "timm_convnext_small"),
        *("vit_small_2d", "vit_small_3d", "vit_base_2d", "vit_3d"),
        *("primus_tiny", "primus_s", "primus_b", "primus_m"),
    }
