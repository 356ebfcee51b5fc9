"""What the user changes in the sampling of an objective: that field and no other."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from medssl import cli
from medssl.cli.parser import arguments_for
from medssl.cli.words import read_command
from medssl.data.store.store import Store
from medssl.encoders.resenc import ResEnc
from medssl.objectives.global_local import Cues, GlobalContrast, LocalContrast
from medssl.objectives.simclr import SimCLR
from medssl.training.settings import Loading, SamplingChanges
from medssl.types import Geometry, Sampling, UserError, ViewSpec

ENCODER = functools.partial(
    ResEnc, 1, ndim=2, channels=(4, 8), strides=((1, 1), (2, 2)), blocks=(1, 1), norm="instance"
)
VIEW = ViewSpec((16, 16), geometry=Geometry(flip="none"))


def asked(*words: str) -> SamplingChanges | None:
    """The sampling of a command line."""

    def verb(*, data: Loading) -> None: ...

    verb.__annotations__ = {"data": Loading}
    data: Loading = arguments_for(verb, "verb", read_command("tests:verb", words))["data"]
    return data.sampling


def test_nothing_asked_for_changes_nothing():
    assert asked() is None
    needs = SimCLR(ENCODER(), view=VIEW).needs.sampling
    assert SamplingChanges().made_in(needs, "SimCLR") == needs


GIVEN = [
    ("slice_axis=1", {"slice_axis": 1}),
    ("regions_per_scan=4", {"regions_per_scan": 4}),
    ("foreground=0.5", {"foreground": 0.5}),
    ("distinct_subjects=false", {"distinct_subjects": False}),  # the default of Sampling, said on purpose
    ("slice_axis=2", {}),
]


@pytest.mark.parametrize(("word", "changed"), GIVEN, ids=[word for word, _ in GIVEN])
def test_only_the_field_that_was_given_changes(word, changed):
    needs = SimCLR(ENCODER(), view=VIEW).needs.sampling
    changes = asked(f"--data.sampling.{word}")
    assert changes is not None
    assert needs == Sampling(distinct_subjects=True)
    assert changes.made_in(needs, "SimCLR") == replace(needs, **changed)


REFUSED = [
    ("slice_axis=1", r"slice_axis 1: GlobalContrast needs 2, .* 4 crops .* axis 2: .* \(objective.cues.axis 1\)"),
    ("stratified_axis=0", r"stratified_axis 0: GlobalContrast needs 2, .* \(objective.cues.axis 0\)"),
    ("regions_per_scan=1", r"regions_per_scan 1: GlobalContrast needs 4, .* \(objective.cues.parts 1\)"),
]


@pytest.mark.parametrize(("word", "message"), REFUSED, ids=[word for word, _ in REFUSED])
def test_what_would_break_the_strata_of_an_objective_is_refused(word, message):
    needs = GlobalContrast(ENCODER(), view=VIEW, cues=Cues(4), projection=(8, 8)).needs.sampling
    changes = asked(f"--data.sampling.{word}")
    assert changes is not None
    with pytest.raises(UserError, match=rf"^data\.sampling\.{message}$"):
        changes.made_in(needs, "GlobalContrast")


def test_strata_stay_where_another_field_changes_or_the_same_is_said():
    objective = LocalContrast(ENCODER(), view=VIEW, cues=Cues(4, axis=1), steps=1)
    changes = asked("--data.sampling.foreground=0.3", "--data.sampling.slice_axis=1")
    assert changes is not None
    assert changes.made_in(objective.needs.sampling, "LocalContrast") == Sampling(4, True, 1, 1, 0.3)


@pytest.mark.parametrize("recipe", ["simclr_2d_small", "global_2d_small"])
def test_recipes_on_the_command_line(tmp_path, monkeypatch, capsys, recipe):
    """The plan that reading gets, of the whole verb."""
    from commands import toys

    plans = []

    def feed(store: Store, plan, *_, **__):
        plans.append(plan)
        message = "the plan is known"
        raise UserError(message)

    monkeypatch.setattr("medssl.commands.pretrain.batches_of_store", feed)
    monkeypatch.setattr("os.umask", lambda mask: 0)
    words = ["pretrain", f"--config={recipe}", f"--store={toys.toy_store(tmp_path / 'store')}", f"--run={tmp_path}/run"]
    assert cli.main([*words, "--data.sampling.slice_axis=1"]) == 2
    said = capsys.readouterr().err
    if recipe == "simclr_2d_small":
        assert "the plan is known" in said
        assert plans[0].sampling == Sampling(distinct_subjects="where_possible", slice_axis=1)
        return
    assert "data.sampling.slice_axis 1: GlobalContrast needs 2" in said
    assert cli.main([*words, "--objective.cues.axis=1"]) == 2
    assert "the plan is known" in capsys.readouterr().err
    assert plans[0].sampling == Sampling(4, True, 1, 1)


def test_pretraining_has_no_crops_around_labels(capsys):
    words = ["--config=simclr_2d_small", "--store=store", "--run=run", "--data.sampling.labeled=0.3"]
    assert cli.main(["pretrain", *words]) == 2
    assert "unknown key 'data.sampling.labeled'" in capsys.readouterr().err
