"""Replaces what rules leave to a collection by numbers: spacings, percentiles, mean and deviation."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from medssl.data.store import fingerprint
from medssl.data.store.spacing import Spacings
from medssl.io.processes import Lost, Pool, spawning
from medssl.types import Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medssl.io.limits import Limits
    from medssl.types import IntensityRule, LabelSchema, Scan, ValueDomain


class Resolver:
    """Finds the numbers of rules for a selection of scans.

    Args:
        scans: Gives the scans, anew at each call.
        root: Folder that their paths start from.
        schemas: Class map of each data set, or None.
        path: Folder of the store.
        former: Rules that were given for the store that is there, and its rules in numbers; None without such a store.
    """

    def __init__(
        self,
        scans: Callable[[], Iterator[Scan]],
        root: Path,
        schemas: dict[str, LabelSchema | None],
        path: Path,
        former: tuple[Preprocess, Preprocess] | None = None,
    ) -> None:
        self.scans, self.root, self.schemas, self.path, self.former = scans, root, schemas, path, former

    def resolve(
        self, rules: Preprocess, *, workers: int, limits: Limits, setup: Callable[[], None]
    ) -> tuple[Preprocess, list[str]]:
        """The rules with numbers alone, and lines that say what was measured.

        A store that the same rules made keeps its numbers, whatever scans are there now.

        Raises:
            UserError: There is nothing to measure.
        """
        former = self._former(rules)
        notes: list[str] = []
        spacings = Spacings(self.scans(), rules.orientation)
        if former is not None:
            return former, self._kept(rules, former, spacings)
        resolved = rules
        if isinstance(rules.spacing_mm, str):
            resolved = replace(resolved, spacing_mm=spacings.target(rules.spacing_mm))
            notes.append(f"{_spacing_text(rules, resolved)}, of {len(spacings)} volumes ({spacings.described()} mm)")
        elif rules.isotropic is not None:
            resolved = replace(resolved, spacing_mm=(rules.isotropic,) * 3, isotropic=None)
        elif rules.spacing_mm is None and (note := spacings.spread_note()):
            notes.append(note)
        intensity = resolved.intensity
        for entry in fields(intensity):
            rule, domain = getattr(intensity, entry.name), cast("ValueDomain", entry.name)
            if not rule.is_resolved:
                measured, lines = self._measure(resolved, domain, workers=workers, limits=limits, setup=setup)
                intensity, notes = replace(intensity, **{entry.name: measured}), notes + lines
        return replace(resolved, intensity=intensity), notes

    def forget_samples(self) -> None:
        """Deletes the samples of a fingerprint, once the store has its rules."""
        with suppress(OSError):
            shutil.rmtree(self.path / fingerprint.FOLDER)

    def _former(self, rules: Preprocess) -> Preprocess | None:
        """The rules of the store, where the same request made it."""
        if rules.is_resolved or self.former is None or self.former[0].digest() != rules.digest():
            return None
        return replace(self.former[1], domains=rules.domains, mirror=rules.mirror)

    def _kept(self, rules: Preprocess, former: Preprocess, spacings: Spacings) -> list[str]:
        """Lines on numbers that stay although the selection of scans may have changed."""
        notes = []
        if isinstance(rules.spacing_mm, str):
            text = f"{_spacing_text(rules, former)}, as measured when the store was made"
            if len(spacings) and (now := spacings.target(rules.spacing_mm)) != former.spacing_mm:
                text += f"; the present selection has {_shown(now)} mm, which a store in another folder would get"
            notes.append(text)
        for entry in fields(rules.intensity):
            if not getattr(rules.intensity, entry.name).is_resolved:
                rule = getattr(former.intensity, entry.name)
                notes.append(
                    f"preprocess.intensity.{entry.name}: clip {rule.clip} {rule.low:.6g} to {rule.high:.6g}, normalize "
                    f"{rule.normalize} (mean {rule.mean:.6g}, deviation {rule.deviation:.6g}), as measured when the "
                    "store was made"
                )
        return notes

    def _measure(
        self, rules: Preprocess, domain: ValueDomain, *, workers: int, limits: Limits, setup: Callable[[], None]
    ) -> tuple[IntensityRule, list[str]]:
        """The intensity rule of a domain in numbers, and what to say of them."""
        scans, is_labeled = fingerprint.sampling_of(self.scans(), domain)
        fingerprint.refuse_none(scans, domain)
        folder = self.path / fingerprint.FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        plain = fingerprint.rules_of_sample(rules)
        sampling = fingerprint.Sampling(self.root, folder, plain, self.schemas, is_labeled)
        failed = 0
        jobs = ((scan,) for scan in scans if not sampling.file(scan).exists())
        with Pool["Scan"](workers, limits, context=spawning(), setup=setup, ordered=False) as pool:
            for _, outcome in pool.map(partial(fingerprint.draw_samples, sampling), jobs):
                failed += 1 if isinstance(outcome, Lost) else outcome
        rule, line = fingerprint.measured(getattr(rules.intensity, domain), sampling, scans, domain)
        return rule, [line + (f"; {failed} scans could not be read" if failed else "")]


def _spacing_text(rules: Preprocess, resolved: Preprocess) -> str:
    """A measured spacing in words."""
    assert isinstance(resolved.spacing_mm, tuple)
    return f"preprocess.spacing_mm {rules.spacing_mm}: {_shown(resolved.spacing_mm)} mm"


def _shown(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{mm:.6g}" for mm in spacing)
