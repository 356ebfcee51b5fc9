"""Refuses plans of views with settings that are out of range or contradict each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from medssl.types import UserError
from medssl.views import extents, overlap, stain

if TYPE_CHECKING:
    from medssl.types import Intensity, Sampling, ViewPlan, ViewSpec

_PAIRS = ("noise", "blur", "brightness", "bias_field")
_RANGES = ("contrast", "gamma", "brightness_factor", "inverted_gamma", "reduced_resolution")


def check_plan(plan: ViewPlan) -> None:
    """Refuses a plan with settings that are out of range or contradict each other.

    Raises:
        UserError: Names the view and the setting.
    """
    if not plan.views:
        message = "a plan needs at least one view"
        raise UserError(message)
    sampling = plan.sampling
    limits = {
        "regions_per_scan": sampling.regions_per_scan >= 1,
        "stratified_axis": sampling.stratified_axis is None or 0 <= sampling.stratified_axis < 3,
        "slice_axis": 0 <= sampling.slice_axis < 3,
        "foreground": 0 <= sampling.foreground <= 1,
        "labeled": 0 <= sampling.labeled <= 1,
    }
    for name, holds in limits.items():
        if not holds:
            message = f"data.sampling.{name} is out of range: {getattr(sampling, name)}"
            raise UserError(message)
    _check_labeled(sampling)
    for number, spec in enumerate(plan.views):
        problem = _problem(spec, number, plan)
        if problem:
            message = f"view {number}: {problem}"
            raise UserError(message)
        extents.rotation_limits(spec)


def _check_labeled(sampling: Sampling) -> None:
    """Refuses settings that place crops in two ways at once: around labels, and by parts or foreground."""
    if sampling.labeled > 0 and sampling.stratified_axis is not None:
        message = (
            f"data.sampling.labeled {sampling.labeled} and stratified_axis {sampling.stratified_axis} both say "
            "where crops lie: leave one of them out"
        )
        raise UserError(message)
    if sampling.labeled + sampling.foreground > 1:
        message = (
            f"data.sampling.labeled {sampling.labeled} and foreground {sampling.foreground} are shares of the "
            "same crops: make their sum at most 1"
        )
        raise UserError(message)


def _problem(spec: ViewSpec, number: int, plan: ViewPlan) -> str:
    """What is wrong with a view; "" if nothing is."""
    n = len(plan.views[0].size)
    if len(spec.size) != n or n not in (2, 3) or min(spec.size) < 1:
        return f"size takes 2 or 3 positive numbers, as many in each view: {spec.size}"
    if not 0 < spec.scale[0] <= spec.scale[1]:
        return f"scale takes two positive numbers, the lower one first: {spec.scale}"
    if spec.nested_in is not None and not 0 <= spec.nested_in < number:
        return f"nested_in takes the number of an earlier view: {spec.nested_in}"
    return (
        _problem_of_area(spec)
        or _problem_of_geometry(spec)
        or _problem_of_intensity(spec.intensity)
        or overlap.problem(spec, number, plan)
    )


def _problem_of_area(spec: ViewSpec) -> str:
    if spec.area is None:
        return ""
    low, high = spec.area
    if not 0 < low <= high <= 1:
        return f"area takes two shares of the scan, above 0 to 1, the lower one first: {spec.area}"
    if tuple(spec.scale) != (1.0, 1.0):
        return f"area {list(spec.area)} and scale {list(spec.scale)} both set the extent: set area to null to use scale"
    if not spec.geometry.isotropic:
        return f"area {list(spec.area)} draws one scale for all axes: set geometry.isotropic to true, or use scale"
    if spec.nested_in is not None:
        return f"area {list(spec.area)} is a share of the scan, and nested_in {spec.nested_in} shrinks views: use scale"
    return ""


def _problem_of_geometry(spec: ViewSpec) -> str:
    geometry = spec.geometry
    if not 0 <= geometry.probability <= 1:
        return f"geometry.probability takes a number from 0 to 1: {geometry.probability}"
    if not 0 <= geometry.quarter_turns <= 1:
        return f"geometry.quarter_turns takes a probability from 0 to 1: {geometry.quarter_turns}"
    if geometry.quarter_turns > 0 and (len(spec.size) != 2 or spec.size[0] != spec.size[1]):
        return f"geometry.quarter_turns needs a square 2D view, and size is {tuple(spec.size)}: set it to 0"
    if geometry.quarter_turns > 0 and not geometry.isotropic:
        return "geometry.quarter_turns exchanges the axes: set geometry.isotropic to true, or quarter_turns to 0"
    return ""


def _problem_of_intensity(changes: Intensity) -> str:
    for name in (*_PAIRS, *_RANGES):
        values = getattr(changes, name)
        if not 0 <= values[0] <= 1 or any(not math.isfinite(value) or value < 0 for value in values):
            return f"intensity.{name} takes a probability and then numbers of at least 0: {values}"
    for name in _RANGES:
        factors = getattr(changes, name)[1:]
        if not 0 < factors[0] <= factors[1]:
            return f"intensity.{name} takes two positive numbers, the lower one first: {factors}"
    if changes.reduced_resolution[2] > 1:
        return f"intensity.reduced_resolution takes shares of the voxels up to 1: {changes.reduced_resolution[1:]}"
    return stain.problem(changes)
