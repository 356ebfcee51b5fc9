"""Every shipped objective keeps the contract, in 2D and 3D, on one process and on two; broken ones are found out."""

from __future__ import annotations

import contextlib
import copy
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import ddp
import pytest
import torch
import yaml
from objectives.small import CONFIGS, encoder, from_config, spark

from medssl.encoders.base import ContractError
from medssl.encoders.timm2d import Timm2d
from medssl.objectives.base import Objective, check_objective, evaluation_mode, select_rows
from medssl.objectives.contract import example_batch, loss_and_gradients
from medssl.objectives.global_local import GlobalContrast, LocalContrast
from medssl.objectives.graph_match import GraphMatch
from medssl.objectives.simclr import SimCLR
from medssl.objectives.spark import SparK
from medssl.types import Geometry, Loss, UserError, ViewSpec

PRESETS = sorted(str(path) for path in (CONFIGS / "objectives").glob("*.yaml"))
TILES = [path for path in PRESETS if path.endswith("_tiles.yaml")]  # presets of images with other views
OBJECTIVES = [path for path in PRESETS if path not in TILES]
NAMES = [path.rsplit("/", 1)[-1] for path in OBJECTIVES]
OF_IMAGES = ("rad_dino", "surgenet", "uni", "mae_cxr")  # other values of a class that has presets in 2D and 3D


def axes_of(path: str) -> tuple[int, ...]:
    """In how many dimensions a preset is tried: its own where the objective has one for each, else both."""
    name = Path(path).stem
    if name in OF_IMAGES:
        return (2,)
    for ndim in (2, 3):
        if name.endswith(f"_{ndim}d") and path.replace(f"_{ndim}d.yaml", f"_{5 - ndim}d.yaml") in OBJECTIVES:
            return (ndim,)
    return (2, 3)


CASES = [(path, ndim) for path in OBJECTIVES for ndim in axes_of(path)]


def test_there_are_objectives():
    assert {"spark_2d.yaml", "spark_3d.yaml"} <= set(NAMES)


@pytest.mark.parametrize("path", TILES, ids=lambda path: path.rsplit("/", 1)[-1])
def test_a_preset_for_tiles_is_that_of_images_but_for_its_views(path):
    """So that the contract, which makes images itself, holds for one as for the other."""
    tiles, images = (yaml.safe_load(Path(file).read_text()) for file in (path, path.replace("_tiles.yaml", "_2d.yaml")))
    assert tiles["class_path"] == images["class_path"]
    for preset in (tiles, images):
        del preset["init_args"]["view"]
        preset["init_args"].get("sampling", {}).pop("foreground", None)
    assert tiles["init_args"] == images["init_args"]
    from_config(path, 2)


def test_every_objective_is_tried_in_two_and_three_dimensions():
    tried: dict[str, set[int]] = {}
    for path, ndim in CASES:
        tried.setdefault(yaml.safe_load(Path(path).read_text())["class_path"], set()).add(ndim)
    assert {name for name, axes in tried.items() if axes != {2, 3}} == set()


@pytest.mark.parametrize(("path", "ndim"), CASES, ids=lambda case: Path(case).name if isinstance(case, str) else case)
def test_shipped_objectives_keep_the_contract(path, ndim):
    check_objective(partial(from_config, path, ndim))


def two(makes):
    return [loss_and_gradients(make) for make in makes]


@pytest.mark.ddp
def test_two_processes_equal_one():
    """Loss and gradients in float64 to 1e-9; the processes differ in what is scored and in what is visible."""
    makes = [partial(from_config, path, ndim) for path, ndim in CASES]
    # cells finer than the stride: at the coarsest map the number of visible positions differs between samples
    makes.append(partial(spark, 2, cell=(4, 4)))
    batch, step = example_batch(spark(2).needs, 1)
    scored = [select_rows(batch, step, rows)[0].views[0] for rows in ((0, 1), (2, 3))]
    assert len({int((view.valid & view.scored).sum()) for view in scored}) == 2
    shared = ddp.run_two(two, makes)
    for number, make in enumerate(makes):
        loss, gradients = loss_and_gradients(make)
        scale = max(float(gradient.abs().max()) for gradient in gradients.values())
        for results in shared:
            assert results[number][0] == pytest.approx(loss, rel=1e-10)
            assert results[number][1].keys() == gradients.keys()
            for name, gradient in results[number][1].items():
                torch.testing.assert_close(gradient, gradients[name], rtol=1e-9, atol=1e-9 * scale, msg=name)


# --- the suite finds what is broken


class Broken(SparK):
    """Breaks one clause, by name."""

    def __init__(self, clause: str) -> None:
        inner = spark(2)
        super().__init__(inner.encoder, view=inner.needs.views[0], decoder_width=16)
        self.clause = clause
        self.unused = torch.nn.Parameter(torch.zeros(2)) if clause == "unused" else None
        if clause == "progress":
            self.progress = "accuracy"

    def require(self, batch, step):
        if self.clause != "refuse":
            super().require(batch, step)

    def exported(self):
        return {} if self.clause == "exported" else super().exported()

    def forward(self, batch, step):
        if self.clause == "input":
            batch.views[0].image.mul_(0.5)
        if self.clause == "raise" and batch.views and batch.views[0].image.isnan().any():
            raise ValueError("matrix contains invalid numeric entries")
        if self.clause == "refuse" and (not batch.views or batch.views[0].image.shape[1] != 1):
            return Loss(total=torch.zeros(()))
        loss = super().forward(batch, step)
        if self.clause == "nan":
            return replace(loss, total=loss.total * float("nan"))
        if self.clause == "attached":
            return replace(loss, terms={"loss": loss.total})
        if self.clause == "embedding":
            return replace(loss, embedding=loss.embedding[1:])
        if self.clause == "seed":
            return replace(loss, total=loss.total + torch.empty(()).uniform_(generator=self.generator()))
        if self.clause == "order":
            return replace(loss, total=loss.total * (1 + batch.views[0].image[0].mean()))
        if self.clause == "learn":
            return replace(loss, total=loss.total * 1e-3 + 0 * loss.total, terms={"loss": torch.ones(())})
        return loss

    def generator(self):
        generator = torch.Generator()
        generator.seed()
        return generator

    def pictures(self, batch, step):
        if self.clause == "pictures":
            self.eval()
        return super().pictures(batch, step)


@pytest.mark.parametrize(
    ("clause", "match"),
    [
        ("unused", "trainable parameters, no others, have a gradient; unused"),
        ("progress", 'measure of progress "accuracy"'),
        ("refuse", "other views is refused"),
        ("exported", r'exported\(\) has an "encoder"'),
        ("input", "left as it was"),
        ("nan", "one finite number"),
        ("attached", "terms are detached"),
        ("embedding", "one detached row per sample"),
        ("seed", "same seed, same value"),
        ("order", "order of scans is irrelevant"),
        ("raise", "a batch with NaN gives a loss, not an error; ValueError: matrix contains invalid"),
        ("pictures", "pictures leave"),
        ("learn", "falls by 2 %"),
    ],
)
def test_a_broken_objective_is_found_out(clause, match):
    with pytest.raises(ContractError, match=match):
        check_objective(partial(Broken, clause), steps=2)


class Users(Objective):
    """A user's own objective: predicts the mean of the image from pooled features."""

    def __init__(self, encoder, view) -> None:
        super().__init__()
        self.encoder = encoder
        self.needs = replace(spark(2).needs, views=(view,))
        self.head = torch.nn.Linear(encoder.channels[-1], 1)

    def forward(self, batch, step):
        self.require(batch, step)
        image = batch.views[0].image
        total = (self.head(self.encoder(image).pooled)[:, 0] - image.flatten(1).mean(1)).square().mean()
        return Loss(total=total, terms={"loss": total.detach()})


class WithTeacher(Users):
    """A user's own objective with a teacher, right or wrong, or with a forward that goes wrong."""

    def __init__(self, encoder, view, fault: str = "") -> None:
        super().__init__(encoder, view)
        self.fault = fault
        self.teacher = copy.deepcopy(self.head).requires_grad_(fault == "trained teacher")

    def forward(self, batch, step):
        loss = super().forward(batch, step)
        wrong = {
            "tensor": loss.total, "nothing": None, "four": replace(loss, total=loss.total.repeat(4)),
            "infinite": replace(loss, total=loss.total / 0), "number": replace(loss, terms={"loss": 1.0}),
            "vector": replace(loss, terms={"loss": loss.total.detach(), "each": torch.ones(3)}),
        }  # fmt: skip
        if self.fault in wrong:
            return wrong[self.fault]
        pooled = self.encoder(batch.views[0].image).pooled
        with contextlib.nullcontext() if self.fault == "trained teacher" else torch.no_grad():
            wanted = self.teacher(pooled)
        return replace(loss, total=loss.total + 0.1 * (self.head(pooled) - wanted).square().mean())

    def after_step(self, step):
        with torch.no_grad():
            for mine, its in zip(self.head.parameters(), self.teacher.parameters(), strict=True):
                its.lerp_(mine, 0.004)
            if self.fault == "norm":  # of what is trained: kept, not moved on
                self.head.weight.div_(self.head.weight.norm())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("tensor", "forward returns a medssl.types.Loss; got Tensor"),
        ("nothing", "forward returns a medssl.types.Loss; got NoneType"),
        ("four", "the loss is one finite number; got shape (4,)"),
        ("infinite", "the loss is one finite number; got inf"),
        ("number", "terms are detached tensors of one number; loss is a float"),
        ("vector", "terms are detached tensors of one number; each is of shape (3,)"),
        (
            "trained teacher",
            "after_step moves nothing that the optimizer trains; teacher.weight; a teacher has requires_grad_(False) "
            "and runs under torch.no_grad()",
        ),
    ],
)
def test_the_suite_says_what_is_wrong(fault, message):
    view = spark(2).needs.views[0]
    with pytest.raises(ContractError, match=f"^broken clause: {re.escape(message)}$"):
        check_objective(lambda: WithTeacher(spark(2).encoder, view, fault))


@pytest.mark.parametrize("fault", ["", "norm"])
def test_a_teacher_that_is_right_and_norms_that_are_kept_pass(fault):
    view = spark(2).needs.views[0]
    check_objective(lambda: WithTeacher(spark(2).encoder, view, fault), rate=5e-3)


def test_whoever_forgets_require_is_told():
    class Forgetful(Users):
        def require(self, batch, step):
            torch.cat([view.image for view in batch.views])

    message = (
        r"^broken clause: a batch with other views is refused; .*non-empty.*; let forward begin with self\.require$"
    )
    with pytest.raises(ContractError, match=message):
        check_objective(lambda: Forgetful(spark(2).encoder, spark(2).needs.views[0]))


def test_a_users_own_class_is_checked():
    small = spark(2)
    check_objective(lambda: Users(spark(2).encoder, small.needs.views[0]), rate=5e-3)


# --- the parts of the base


def test_take_keeps_rows_together():
    batch, step = example_batch(spark(3).needs, 1)
    part, part_step = select_rows(batch, step, [2, 0])
    assert part.origin.scan_ids == ("scan2", "scan0")
    assert part.origin.samples == part_step.samples == (2, 0)
    assert torch.equal(part.views[0].valid, batch.views[0].valid[[2, 0]])


def test_evaluation_mode_gives_each_module_its_own_mode_back():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    module[1].eval()

    def fail():
        assert not module[0].training
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), evaluation_mode(module):
        fail()
    assert [module.training, module[0].training, module[1].training] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda batch, step: (replace(batch, views=()), step), "SparK needs 1 views, the batch has 0"),
        (lambda batch, step: (batch, replace(step, samples=(0,))), "view 0 has 4 samples, the step names 1"),
    ],
)
def test_other_batches_are_refused(change, match):
    objective = spark(2)
    with pytest.raises(UserError, match=match):
        objective(*change(*example_batch(objective.needs, 1)))


@pytest.mark.parametrize("kind", [SimCLR, GlobalContrast, LocalContrast, GraphMatch])
@pytest.mark.parametrize(
    ("size", "match"),
    [
        (
            (32, 48, 16),
            r"view size \(32, 48, 16\) is 3D, the encoder takes 2D: take encoder and objective of one recipe",
        ),
        ((32, 50), r"view size \(32, 50\) is not a multiple of \(8, 8\): nearest sizes that work are .* or \(32, 56\)"),
    ],
)
def test_views_that_the_encoder_cannot_take_are_refused(kind, size, match):
    with pytest.raises(UserError, match=match):
        kind(encoder(2), view=ViewSpec(size, geometry=Geometry(flip="none")))


@pytest.mark.parametrize("kind", [SimCLR, GlobalContrast, LocalContrast])
@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan")])
def test_a_temperature_that_is_not_above_0_is_refused(kind, temperature):
    with pytest.raises(UserError, match=rf"temperature: must be above 0 \(got {temperature}\)"):
        kind(encoder(2), view=ViewSpec((32, 48), geometry=Geometry(flip="none")), temperature=temperature)


def test_other_sizes_and_channels_are_refused():
    objective = spark(2)
    larger = replace(objective.needs, views=(replace(objective.needs.views[0], size=(48, 48)),))
    with pytest.raises(UserError, match=r"has size \(48, 48\), SparK needs \(32, 48\)"):
        objective(*example_batch(larger, 1))
    with pytest.raises(UserError, match=r"view 0 has 3 channels, the encoder takes 1: set encoder\.in_channels to 3"):
        objective(*example_batch(objective.needs, 3))


def test_layer_norms_before_the_tokens_suit_an_encoder_of_layer_norms():
    def make():
        encoder = Timm2d("convnext_atto", in_channels=1)
        return SparK(encoder, view=ViewSpec(size=(64, 96)), norm="layer", decoder_width=64)

    check_objective(make, steps=12)
