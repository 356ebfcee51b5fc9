"""Which slices make a volume: what separates them, and what must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.formats.dicom.attributes import CONTRASTS, DESCRIPTIONS, MOMENTS
from medssl.data.formats.dicom.series.volumes import SeriesFiles, stacks_of
from medssl.data.formats.dicom.slices import Slice, Stack

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def slice_at(place: float, name: str = "", *, number: float = 0, facts: Any = None, **attributes: Any) -> Slice:
    """A slice ``place`` mm above the origin; ``name`` is that of its file."""
    all_facts = {"modality": "CT", "subject": "s", "study": "t", "burned_in": False, "apart": {}} | (facts or {})
    turn = attributes | {"number": number}
    pose = (*AXIAL, 0.0, 0.0, float(place))
    return Slice(name or f"f/{place}{sorted(turn.items())}", None, "i", (6, 8, 1), (0.8, 0.6), pose, turn, all_facts)


def never(_a: Slice, _b: Slice) -> bool:
    return False


def grouped(slices: list[Slice], files: SeriesFiles | None = None) -> list[Stack]:
    return stacks_of(slices, never, files)


def places(stack: Stack) -> list[float]:
    return [(one.pose or ())[8] for one in stack.slices]


def values_of(name: str) -> tuple[Any, Any]:
    if name == "SpacingBetweenSlices":
        return 5.0, 6.0
    kind = (CONTRASTS | MOMENTS | DESCRIPTIONS)[name]
    if kind == "vector":
        return [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    if kind == "set":
        return ["AXIAL", "ORIGINAL", "WATER"], ["AXIAL", "FAT", "ORIGINAL"]
    return (1.0, 2.0) if kind == "number" else ("A", "B")


@pytest.mark.parametrize("name", [*CONTRASTS, *MOMENTS, *DESCRIPTIONS])
def test_every_attribute_separates_slices_of_one_place(name):
    slices = [slice_at(5 * k, **{name: value}) for value in values_of(name) for k in range(6)]
    stacks = grouped(slices)
    assert [stack.status.code for stack in stacks] == ["ok", "ok"]
    for stack in stacks:
        assert len({str(one.attributes[name]) for one in stack.slices}) == 1
        assert places(stack) == [0, 5, 10, 15, 20, 25]
        assert f"split by {name}" in stack.status.reason


@pytest.mark.parametrize(
    "name", [*CONTRASTS, *DESCRIPTIONS, "AcquisitionNumber", "AcquisitionUID", "KVP", "TemporalPositionIdentifier"]
)
def test_interleaved_volumes_stay_apart_without_repeated_places(name):
    slices = [slice_at(5 * k + 2.5 * n, **{name: values_of(name)[n]}) for n in (0, 1) for k in range(8)]
    stacks = grouped(slices)
    assert [stack.status.code for stack in stacks] == ["ok", "ok"]
    assert [stack.grid.spacing_mm[2] for stack in stacks] == [5, 5]


def test_acquisitions_that_only_their_time_tells_apart_stay_apart():
    slices = [slice_at(5 * k + 2.5 * n, AcquisitionDateTime=100.0 + 60 * n) for n in (0, 1) for k in range(8)]
    assert [stack.grid.spacing_mm[2] for stack in grouped(slices)] == [5, 5]


@pytest.mark.parametrize(
    "values",
    [
        {"AcquisitionNumber": range(1, 13)},  # step and shoot, one slice a shot
        {"AcquisitionNumber": [1] * 4 + [2] * 4 + [3] * 4},  # four slices a shot
        {"AcquisitionDateTime": np.arange(12) * 0.7},
        {"AcquisitionTime": np.arange(12) * 0.7},
        {"AcquisitionTime": [0.1, 0.2, 0.3] * 4},  # simultaneous multi-slice: four slices at a time
        {"TriggerTime": np.arange(12) * 31.0},
        {"KVP": [100.0] * 6 + [120.0] * 6},
        {"KVP": [100.0, 120.0, 120.0, 100.0, 100.0, 120.0, 100.0, 120.0, 120.0, 100.0, 120.0, 100.0]},
        {"EchoTime": [4.999, 5.0] * 6},
        {"EchoTime": 5.0 + 0.3 * np.arange(12)},
        {"InversionTime": 900.0 + 30 * np.arange(12)},
        {"SliceThickness": [2.5, 2.4999, 2.5001] * 4},
        {"FrameReferenceTime": np.arange(12) * 1000.0},
        {"ReconstructionDiameter": [500.0, 500.01] * 6},
        {"SpacingBetweenSlices": [None] + [2.5, 2.499] * 5 + [2.5]},
        {"ContentTime": np.arange(12)},
    ],
    ids=str,
)
def test_what_differs_within_one_volume_does_not_tear_it(values):
    ((name, row),) = values.items()
    slices = [slice_at(2.5 * k, **({} if value is None else {name: float(value)})) for k, value in enumerate(row)]
    (stack,) = grouped(slices)
    assert stack.status.code == "ok"
    assert stack.grid.shape == (8, 6, 12)
    assert stack.grid.spacing_mm[2] == pytest.approx(2.5)


@pytest.mark.parametrize("hint", [{"SpacingBetweenSlices": 4.4}, {"SliceThickness": 4.0}])
def test_two_packages_of_one_mr_volume_stay_together(hint):
    apart = {"modality": "MR", "apart": hint}
    slices = [slice_at(4.4 * k, facts=apart, AcquisitionNumber=1 + k % 2, AcquisitionTime=k % 2) for k in range(12)]
    (stack,) = grouped(slices)
    assert stack.status.code == "ok"
    assert stack.grid.spacing_mm[2] == pytest.approx(4.4)


def test_contrasts_mixed_at_random_over_one_lattice_are_refused():
    kinds = ["WATER", "FAT", "FAT", "WATER", "WATER", "FAT", "WATER", "FAT", "FAT", "WATER", "FAT", "WATER"]
    stacks = grouped([slice_at(4 * k, ImageType=["ORIGINAL", kind]) for k, kind in enumerate(kinds)])
    assert {stack.status.code for stack in stacks} == {"failed"}
    assert all("split by ImageType" in stack.status.reason for stack in stacks)


def test_echoes_and_points_in_time_are_told_apart_together():
    slices = [
        slice_at(3 * k, EchoTime=10.0 * echo, TemporalPositionIdentifier=time)
        for echo in (1, 2)
        for time in (1, 2, 3)
        for k in range(4)
    ]
    stacks = grouped(slices)
    found = {
        (s.slices[0].slice_attributes["EchoTime"], s.slices[0].slice_attributes["TemporalPositionIdentifier"])
        for s in stacks
    }
    assert len(stacks) == len(found) == 6
    assert {stack.volume[1] for stack in stacks} == {6}


def test_heart_phases_whose_trigger_times_differ_by_slice_follow_the_clock():
    slices = [slice_at(8 * k, TriggerTime=40.0 * phase + 0.7 * k) for phase in range(5) for k in range(4)]
    stacks = grouped(slices)
    assert len(stacks) == 5
    for phase, stack in enumerate(stacks):
        assert [round(one.slice_attributes["TriggerTime"] - 40 * phase, 6) for one in stack.slices] == [
            0,
            0.7,
            1.4,
            2.1,
        ]
        assert "split by TriggerTime, in the order of time at each place" in stack.status.reason


def test_a_phase_that_lacks_a_slice_is_not_filled_from_the_next():
    slices = [slice_at(8 * k, TriggerTime=40.0 * phase + 0.7 * k) for phase in range(5) for k in range(4)]
    (stack,) = grouped(slices[:6] + slices[7:])
    assert stack.status.code == "failed"
    assert "no attribute separates them into whole volumes (TriggerTime differ)" in stack.status.reason


def test_a_clock_goes_before_groups_that_leave_volumes_incomplete():
    slices = [
        slice_at(8 * k, TriggerTime=40.0 * phase + (0.1 * k if phase else 0)) for phase in range(3) for k in range(4)
    ]
    stacks = grouped(slices)
    assert [(stack.status.code, len(stack.slices)) for stack in stacks] == [("ok", 4)] * 3


def test_one_identifier_of_two_issuers_is_said():
    slices = [slice_at(5 * k, facts={"issuer": "AB"[n]}) for n in (0, 1) for k in range(4)]
    assert all("IssuerOfPatientID differs in this series" in stack.status.reason for stack in grouped(slices))


def test_numbers_alone_are_no_proof_but_declared_points_in_time_are():
    def series(**declared: float) -> list[Slice]:
        apart = {"apart": declared}
        return [slice_at(5 * k, number=1 + 4 * time + k, facts=apart) for time in range(3) for k in range(4)]

    (stack,) = grouped(series())
    assert stack.status.code == "failed"
    assert "InstanceNumber differs, but is no proof" in stack.status.reason
    assert [s.status.code for s in grouped(series(NumberOfTemporalPositions=2.0))] == ["failed"]
    stacks = grouped(series(NumberOfTemporalPositions=3.0))
    assert [[one.slice_attributes["number"] for one in stack.slices] for stack in stacks] == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11, 12],
    ]
    assert "NumberOfTemporalPositions" in stacks[0].status.reason


def test_refusals_name_the_attributes_that_differ():
    slices = [
        slice_at(5 * k, f"f/{n}{k}", number=k, AcquisitionNumber=n if k < 3 else 7) for n in (1, 2) for k in range(6)
    ]
    (stack,) = grouped(slices)
    assert stack.status.code == "failed"
    assert "(AcquisitionNumber differ)" in stack.status.reason
    assert "3 times, first at 15.00 mm" not in stack.status.reason
    assert "two different slices in one place: 6 times, first at 0.00 mm (10, 20)" in stack.status.reason


def test_stacks_side_by_side_are_two_volumes():
    slices = [slice_at(5 * k, f"f/{x}{k}") for x in (0, 90) for k in range(5)]
    moved = [
        Slice(
            one.path,
            None,
            "i",
            one.shape,
            one.spacing_mm,
            (*AXIAL, float(one.path[2:-1]), 0.0, one.pose[8]),
            {},
            one.facts,
        )
        for one in slices
    ]
    stacks = grouped(moved)
    assert [stack.status.code for stack in stacks] == ["ok", "ok"]
    assert sorted(stack.grid.affine[0][3] for stack in stacks) == [-90, 0]


@pytest.mark.parametrize(
    ("fact", "word"),
    [
        ("subject", "PatientID"),
        ("issuer", "IssuerOfPatientID"),
        ("study", "StudyInstanceUID"),
        ("reference", "FrameOfReferenceUID"),
        ("modality", "Modality"),
        ("name", "PatientName"),
    ],
)
def test_patients_studies_and_frames_of_reference_never_share_a_volume(fact, word):
    slices = [slice_at(5 * k + 2.5 * n, facts={fact: "AB"[n]}) for n in (0, 1) for k in range(6)]
    stacks = grouped(slices)
    assert [stack.status.code for stack in stacks] == ["ok", "ok"]
    assert {stack.slices[0].facts[fact] for stack in stacks} == {"A", "B"}
    *_, stray = grouped([*slices[:6], slice_at(100, facts={fact: "B"})])
    assert stray.status.code == "rejected"
    assert f"differs from the other 6 of its series in {word}" in stray.status.reason


def test_volumes_of_one_run_on_different_ranges_are_separate_where_steps_differ():
    slices = [slice_at(5 * k, AcquisitionNumber=1) for k in range(6)]
    slices += [slice_at(40 + 3 * k, AcquisitionNumber=2) for k in range(8)]
    stacks = grouped(slices)
    assert sorted(stack.grid.spacing_mm[2] for stack in stacks) == [3, 5]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_attribute_and_any_order_give_the_volumes_that_were_written(data):
    name = data.draw(st.sampled_from(sorted({*CONTRASTS, *MOMENTS} - {"SpacingBetweenSlices"})))
    count, depth = data.draw(st.integers(1, 4)), data.draw(st.integers(3, 7))
    step, shift = data.draw(st.floats(0.5, 9)), data.draw(st.sampled_from([0.0, 0.31]))
    first = values_of(name)[0]
    values = [float(n + 1) * 3 for n in range(count)]
    if isinstance(first, list):
        values = [[n + 1.0, 0.0, 0.0] if isinstance(first[0], float) else [*first, f"K{n}"] for n in range(count)]
    elif isinstance(first, str):
        values = [f"{first}{n}" for n in range(count)]
    moved = shift if name in CONTRASTS else 0.0
    volumes = [
        [slice_at(round(step * (k + moved * n), 4), **{name: value}) for k in range(depth)]
        for n, value in enumerate(values)
    ]
    slices = data.draw(st.permutations([one for volume in volumes for one in volume]))
    dropped = data.draw(st.sampled_from([None, *range(1, depth - 1)])) if depth > 3 else None
    if dropped is not None:
        slices = [one for one in slices if one is not volumes[0][dropped]]
    stacks = grouped(list(slices))
    found = {frozenset(one.path for one in stack.slices): stack.status.code for stack in stacks}
    for n, volume in enumerate(volumes):
        whole = n > 0 or dropped is None
        paths = frozenset(one.path for k, one in enumerate(volume) if whole or k != dropped)
        assert found.get(paths) == ("ok" if whole else "failed"), [s.status.reason for s in stacks]
