"""Learning rates, optimizers and memory of the recipes for GPUs, against what the papers and their code state."""

from __future__ import annotations

import functools
import re

import pytest

from medssl.cli.parser import arguments_for
from medssl.cli.words import read_command
from medssl.commands.pretrain import pretrain
from medssl.io.configurations import config_file, config_names, load_recipe, verb_of
from medssl.training.memory import step_bytes
from medssl.types import UserError

GPU = [name for name in config_names("recipes") if verb_of(name) == "pretrain" and not name.endswith("_small")]
LARGE = [name for name in GPU if not name.endswith("_24gb")]

# recipe: rate and batch of its source, optimizer, resolved rate of one process by hand
PUBLISHED = {
    "densecl_2d": ((0.03, 256), "sgd", 2.121e-2),  # densecl: lr 0.03 at 256
    "densecl_3d": ((2e-4, 16), "adamw", 1.414e-4),  # ours
    "nnclr_2d": ((5e-4, 256), "adamw", 3.536e-4),  # ours: the paper has LARS
    "nnclr_3d": ((2e-4, 16), "adamw", 1.414e-4),  # ours
    "pixpro_2d": ((5e-4, 256), "adamw", 3.536e-4),  # ours: the paper has LARS
    "pixpro_3d": ((2e-4, 16), "adamw", 1.414e-4),  # ours
    "swav_2d": ((5e-4, 256), "adamw", 2.5e-4),  # ours: the paper has LARS
    "swav_3d": ((2e-4, 16), "adamw", 1e-4),  # ours
    "barlow_twins_2d": ((5e-4, 256), "adamw", 3.536e-4),  # ours: the paper has LARS
    "barlow_twins_3d": ((2e-4, 16), "adamw", 1.414e-4),  # ours
    "byol_2d": ((5e-4, 256), "adamw", 3.536e-4),  # ours: the paper has LARS
    "byol_3d": ((2e-4, 16), "adamw", 1.414e-4),  # ours
    "moco_v2_2d": ((0.03, 256), "sgd", 2.121e-2),  # moco: lr 0.03 at 256
    "moco_v2_3d": ((2e-4, 16), "adamw", 1.414e-4),  # ours
    "moco_v3_2d": ((2.4e-3, 4096), "adamw", 4.243e-4),  # moco-v3: 1.5e-4 a 256 images
    "moco_v3_3d": ((2e-4, 16), "adamw", 1.414e-4),  # ours
    "simsiam_2d": ((0.1, 512), "sgd", 0.05),  # simsiam: 0.05 a 256 images
    "simsiam_3d": ((2e-4, 16), "adamw", 1.414e-4),  # ours
    "vicreg_2d": ((5e-4, 256), "adamw", 3.536e-4),  # ours: the paper has LARS
    "vicreg_3d": ((2e-4, 16), "adamw", 1.414e-4),  # ours
    "dino_2d": ((4 * 5e-4, 1024), "adamw", 5e-4),  # dino: lr 5e-4 a 256 images; 2e-3 / 4
    "dino_3d": ((4e-3, 1024), "adamw", 3.536e-4),  # SPECTRE: base_lr 4e-3, sqrt_wrt_1024
    "dinov2_2d": ((4e-3, 1024), "adamw", 1e-3),  # dinov2: base_lr 4e-3, sqrt_wrt_1024
    "dinov2_2d_highres": ((4e-4, 1024), "adamw", 5e-5),  # ours
    "dinov2_3d": ((4e-3, 1024), "adamw", 3.536e-4),  # SPECTRE: base_lr 4e-3, sqrt_wrt_1024
    "ijepa_2d": ((1e-3, 2048), "adamw", 1.768e-4),  # ijepa: lr 1e-3 at 16 x 128
    "ijepa_3d": ((1e-3, 2048), "adamw", 6.25e-5),
    "lejepa_2d": ((5e-4, 256), "adamw", 2.5e-4),  # the paper: 5e-4 at 128 to 256
    "lejepa_3d": ((5e-4, 256), "adamw", 8.839e-5),
    "ibot_2d": ((4 * 5e-4, 1024), "adamw", 5e-4),  # ibot: lr 5e-4 a 256 images
    "rad_dino": ((1e-3, 1024), "adamw", 1.25e-4),  # ours
    "surgenet": ((4 * 5e-4, 1024), "adamw", 5e-4),  # dino
    "uni": ((4e-3, 1024), "adamw", 1e-3),  # dinov2
    "global_2d": ((1e-3, 24), "adamw", 1e-3),  # domain_specific_cl: --lr_reg 0.001, Adam
    "global_3d": ((1e-3, 24), "adamw", 1e-3),
    "local_2d": ((1e-3, 24), "adamw", 1e-3),
    "local_3d": ((1e-3, 24), "adamw", 1e-3),
    "graph_match_2d": ((2e-3, 3200), "adamw", 5.657e-4),  # the paper: 2e-3 at 3200, Adam; 2e-3 x sqrt(0.08)
    "graph_match_3d": ((2e-3, 3200), "adamw", 1.414e-4),  # 2e-3 x sqrt(0.005)
    "mae_2d": ((16 * 1.5e-4, 4096), "adamw", 4.243e-4),  # mae: blr 1.5e-4 a 256 images; 2.4e-3 / sqrt(32)
    "mae_tiles": ((16 * 1.5e-4, 4096), "adamw", 4.243e-4),  # as mae_2d
    "mae_3d": ((3e-4, 8), "adamw", 3e-4),  # nnssl: BaseEvaMAETrainer_BS8
    "mae_primus_3d": ((3e-4, 8), "adamw", 3e-4),  # nnssl: BaseEvaMAETrainer_BS8
    "mae_resenc_3d": ((1e-2, 8), "sgd", 1e-2),  # nnssl: BaseMAETrainer_BS8
    "masked_distillation_2d": ((4 * 5e-4, 1024), "adamw", 5e-4),  # ibot: lr 5e-4 a 256 images; 2e-3 / 4
    "masked_distillation_tiles": ((4 * 5e-4, 1024), "adamw", 5e-4),  # as masked_distillation_2d
    "masked_distillation_3d": ((6 * 1e-4, 6), "adamw", 6.928e-4),  # SMIT: lr 0.0001 x batch of 6
    "simclr_2d": ((5e-4, 256), "adamw", 5e-4),  # ours
    "simclr_tiles": ((5e-4, 256), "adamw", 4.330e-4),  # as simclr_2d; 5e-4 x sqrt(0.75)
    "simclr_3d": ((2e-4, 16), "adamw", 2e-4),  # ours
    "simmim_2d": ((4 * 1e-4, 2048), "adamw", 1e-4),  # SimMIM: base 1e-4 a 512 images; 4e-4 / 4
    "simmim_3d": ((3e-4, 8), "adamw", 3e-4),  # nnssl: SimMIMEvaTrainer_BS8
    "spark_2d": ((16 * 2e-4, 4096), "adamw", 5.657e-4),  # SparK: base_lr 2e-4 a 256 images; 3.2e-3 / sqrt(32)
    "spark_tiles": ((16 * 2e-4, 4096), "adamw", 5.657e-4),  # as spark_2d
    "spark_3d": ((16 * 2e-4, 4096), "adamw", 1.414e-4),  # 3.2e-3 x sqrt(8 / 4096)
}


@functools.cache
def settings(name: str) -> dict:
    words = [f"--config={name}", "--store=store", "--run=run"]
    return arguments_for(pretrain, "pretrain", read_command("medssl.commands.pretrain:pretrain", words))


def test_every_recipe_for_a_gpu_is_in_the_table():
    assert sorted(PUBLISHED) == sorted(LARGE)


@pytest.mark.parametrize("name", PUBLISHED)
def test_rates_follow_the_published_ones_by_the_square_root(name):
    given = settings(name)
    training, optimizer = given["training"], given["optimizer"]
    batch = training.batch_size * training.accumulate
    (rate, reference), kind, by_hand = PUBLISHED[name]
    assert optimizer.learning_rate is None
    assert optimizer.learning_rate_per == pytest.approx((rate, reference))
    assert optimizer.resolved(batch, training.steps).learning_rate == pytest.approx(by_hand, rel=1e-3)
    assert optimizer.name == kind
    assert batch < 1024  # where LAMB and LARS would be worth it
    assert training.precision == "auto"


@pytest.mark.parametrize("name", LARGE)
def test_comments_give_the_resolved_rate_and_no_rule_of_proportion(name):
    text = config_file(name, "recipes").read_text()
    assert "in proportion" not in text
    for said in re.findall(r"here ([\d.e-]+) for", text):
        assert float(said) == pytest.approx(PUBLISHED[name][2], rel=0.02)


QUICK = {"mae_2d", "simclr_3d"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in LARGE])
def test_each_recipe_or_its_form_fits_24_gb(name):
    """By estimate: encoder, gradients and moments take 14 GiB at most, which leaves as much for the rest."""
    form = f"{name}_24gb" if f"{name}_24gb" in GPU else name
    given = settings(form)
    objective = given["objective"](given["encoder"]())
    objective.encoder.recompute = given["training"].recompute
    fixed, sample = step_bytes(objective, half=True)
    assert fixed + given["training"].batch_size * sample < (14 if form != name else 16) * 1024**3
    if form != name:
        assert f"For 24 GB: {form}." in config_file(name, "recipes").read_text()


@pytest.mark.parametrize("name", [name for name in GPU if name.endswith("_24gb")])
def test_a_form_for_24_gb_changes_the_memory_and_nothing_else(name):
    large, small = settings(name.removesuffix("_24gb")), settings(name)
    assert small["optimizer"] == large["optimizer"]
    assert small["data"] == large["data"]
    samples = [given["training"].batch_size * given["training"].accumulate for given in (large, small)]
    if not name.startswith("simclr_2d"):  # the one that compares fewer samples
        assert samples[0] == samples[1]
    assert {f.name: getattr(small["training"], f.name) for f in fields_but_memory()} == {
        f.name: getattr(large["training"], f.name) for f in fields_but_memory()
    }


def fields_but_memory():
    import dataclasses

    from medssl.training.settings import Training

    return [f for f in dataclasses.fields(Training) if f.name not in ("batch_size", "accumulate", "recompute")]


def test_a_recipe_may_change_another(tmp_path):
    mine, more = tmp_path / "mine.yaml", tmp_path / "more.yaml"
    mine.write_text("verb: pretrain\nbase: spark_3d_small\ntraining: {steps: 7}\n")
    more.write_text(f"verb: pretrain\nbase: {mine}\nobjective: {{init_args: {{view: {{size: [24, 24, 24]}}}}}}\n")
    original, changed = load_recipe("spark_3d_small"), load_recipe(str(more), verb="pretrain")
    assert changed["training"] == original["training"] | {"steps": 7}
    assert changed["objective"]["init_args"]["view"]["size"] == [24, 24, 24]
    assert changed["objective"]["class_path"] == original["objective"]["class_path"]
    assert changed["optimizer"] == original["optimizer"]
    assert "base" not in changed


def test_recipes_that_are_based_on_each_other_or_on_none_are_refused(tmp_path):
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(f"base: {other}\n")
    other.write_text(f"base: {one}\n")
    with pytest.raises(
        UserError, match=r"base: other\.yaml and its base are based on each other \(got '.*one\.yaml'\)"
    ):
        load_recipe(str(one))
    one.write_text("base: spark_3d_smal\n")
    with pytest.raises(UserError, match=r"no configuration 'spark_3d_smal' in recipes \(did you mean 'spark_3d_small'"):
        load_recipe(str(one))
