"""Caching: prepares and writes the scans of a selection that a store lacks, in several processes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from medssl.data.store import checksums, disk, records, slides, writer
from medssl.data.store.naming import Tier
from medssl.data.store.resolving import Resolver
from medssl.data.store.store import Store, refuse_other_files
from medssl.data.store.verify import Findings, mend, verify
from medssl.data.store.writer import StorePlan
from medssl.io.limits import Limits, total_memory_gb
from medssl.io.locks import open_lock, share_lock, try_lock
from medssl.io.processes import Lost, Pool, spawning
from medssl.types import Preprocess, UserError

if TYPE_CHECKING:
    import sqlite3
    from collections import Counter
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medssl.data.store.writer import Outcome
    from medssl.types import IntensityRule, LabelSchema, Scan

log = logging.getLogger(__name__)

ABANDONED_SECONDS = 3600.0  # a part file that is older was left by a run that was killed, whatever other runs do


@dataclass(frozen=True)
class Selection:
    """Scans of an index that belong into a store.

    Attributes:
        scans: Gives the scans in the order of their identifiers, anew at each call.
        domains: Number of scans by value domain.
        root: Folder that their paths start from.
        schemas: Class map of each of their data sets, or None.
        digest: Digest of the index.
        synthetic: Whether all scans are phantoms.
    """

    scans: Callable[[], Iterator[Scan]]
    domains: Counter[str]
    root: Path
    schemas: dict[str, LabelSchema | None]
    digest: str = ""
    synthetic: bool = False

    @property
    def schema(self) -> LabelSchema | None:
        """The class map, where all data sets that have one have the same."""
        schemas = {schema for schema in self.schemas.values() if schema is not None}
        return schemas.pop() if len(schemas) == 1 else None


@dataclass(frozen=True)
class CachingOptions:
    """How scans are stored.

    Attributes:
        tier: "chunked" compresses; "raw" does not; "slides" stores where the tissue of whole slides is, and reads
            their pixels from the slides.
        workers: Processes, 0 or more; 0 works in this process.
        seconds: Time limit of one scan, plus one second for every 2 MB of voxels.
        memory_gb: Memory limit of one scan in GB; None takes nine tenths of the machine's memory.
    """

    tier: Tier = "chunked"
    workers: int = 2
    seconds: float = 60.0
    memory_gb: float | None = None


@dataclass(frozen=True)
class Totals:
    """Number of scans that a store holds, that were stored now, and that were skipped."""

    scans: int
    new: int = 0
    skipped: int = 0


@dataclass
class _Work:
    """A run: its plan, the table, the limits of one scan, and which scans are not tried, with the reason."""

    plan: StorePlan
    connection: sqlite3.Connection
    limits: Limits
    left_out: dict[str, str] = field(default_factory=dict)


def cache_scans(selection: Selection, path: Path, preprocess: Preprocess, options: CachingOptions) -> Totals:
    """Stores the scans of a selection that a store lacks, and repairs what was marked as damaged.

    Args:
        selection: The scans.
        path: Folder of the store; created if missing.
        preprocess: Rules of the store.
        options: Tier, processes and limits.

    Raises:
        UserError: The rules fit no scan, the store was made by other rules, or the disk is too small.
    """
    check_tier(preprocess, options.tier)
    if note := check_domains(preprocess, selection.domains):
        log.info(f"note: {note}")
    for line in mend(path):
        log.info(f"note: {line}")
    if not (path / "store.json").exists():
        refuse_other_files(path)
    resolver = Resolver(selection.scans, selection.root, selection.schemas, path, _former_rules(path))
    memory_gb = options.memory_gb or 0.9 * total_memory_gb()
    guess = StorePlan(selection.root, path, preprocess, options.tier, selection.schemas)
    limits = Limits(options.seconds, memory_gb, partial(writer.seconds_for, guess))
    rules, lines = resolver.resolve(preprocess, workers=options.workers, limits=limits, setup=_start)
    for line in lines:
        log.info(f"note: {line}")
    store = Store.create(
        path,
        rules,
        tier=options.tier,
        schema=selection.schema,
        index_digest=selection.digest,
        synthetic=selection.synthetic,
        requested=None if preprocess.is_resolved else preprocess,
    )
    resolver.forget_samples()
    plan = StorePlan(selection.root, store.path, store.preprocess, options.tier, selection.schemas)
    with _sharing(path), closing(records.connect(path / records.TABLE)) as connection:
        if plan.tier == "slides":
            slides.write_sources(path, plan.root, ((plan.key(scan), scan) for scan in selection.scans()))
        changed = writer.refresh(plan, selection.scans(), connection)
        work = _Work(plan, connection, Limits(options.seconds, memory_gb, partial(writer.seconds_for, plan)))
        missing = _estimate(work, selection.scans)
        new, skipped = _run(work, selection.scans(), missing, options.workers)
        total = _log_summary(plan, selection.scans, connection, (new, skipped, changed))
        return Totals(total, new, skipped)


def _former_rules(path: Path) -> tuple[Preprocess, Preprocess] | None:
    """Rules that were given for the store that is there, and its rules in numbers; None where they are the same."""
    if not (path / "store.json").exists():
        return None
    store = Store.open(path)
    return None if store.requested is None else (store.requested, store.preprocess)


def verify_with_progress(path: Path) -> Findings:
    """Compares every byte of a store with its checksums, with a progress bar, and logs what is damaged.

    Raises:
        UserError: There is no store.
    """
    from tqdm.auto import tqdm

    with tqdm(desc="verify", unit="B", unit_scale=True) as bar:
        findings = verify(path, bar.update)
    for text in findings.files:
        log.info(f"damaged {text}")
    for scan_id, text in findings.damaged.items():
        log.info(f"damaged {scan_id}: {text}")
    if findings.without:
        log.info(
            f"note: {findings.without} of {findings.checked} scans were stored without checksums: only sizes are "
            "compared"
        )
    if not findings.sealed:
        log.info(
            "note: caching has not ended since the store was changed: cache the index again to check all of the table"
        )
    count = len(findings.damaged)
    if findings.ok:
        log.info(f"{path}: {findings.checked} scans, none damaged")
    else:
        log.info(
            f"{path}: {findings.checked} scans, {count} damaged: cache the index again into this store, which stores "
            "them anew"
        )
    return findings


def check_tier(preprocess: Preprocess, tier: Tier) -> None:
    """Refuses rules that do not suit a tier.

    Raises:
        UserError: Slides without a resolution, a resolution of slides without slides, or stains that are normalized.
    """
    if tier == "slides" and preprocess.tiles.mpp is None:
        message = "tier slides reads slides at a resolution of the store"
        expected = "micrometers a pixel, such as 0.5, or the preset slides"
        raise UserError(message, key="preprocess.tiles.mpp", got=None, expected=expected)
    if tier != "slides" and preprocess.tiles.mpp is not None:
        message = "preprocess.tiles.mpp is a resolution for whole slides"
        raise UserError(message, key="tier", got=tier, expected="slides, or preprocess.tiles.mpp null")
    if tier == "slides" and preprocess.stain.method != "none":
        message = "stains are normalized when pixels are stored, and this tier stores none"
        raise UserError(message, key="preprocess.stain.method", got=preprocess.stain.method, expected="none")


def check_domains(preprocess: Preprocess, domains: Counter[str]) -> str:
    """Compare the value domains that rules are meant for with those of the scans.

    Returns:
        A note where some scans are of other domains: which rule they get; else nothing.

    Raises:
        UserError: No scan is of a domain that the rules are meant for.
    """
    others = {domain: count for domain, count in sorted(domains.items()) if domain not in preprocess.domains}
    if not preprocess.domains or not others:
        return ""
    total, wanted = domains.total(), " and ".join(preprocess.domains)
    counts = ", ".join(f"{count:,} of {total:,} scans are {domain}" for domain, count in others.items())
    if len(others) == len(domains):
        terms = {"hu": "CT", "mr": "MR"}
        modality = next((terms[domain] for domain in preprocess.domains if domain in terms), "")
        what = f"Index with files.modality {modality}" if modality else "Choose another preset of preprocess"
        hint = f"{what}, or set preprocess.domains [{next(iter(others))}] to take the default rule for them"
        message = f"sets rules for {wanted}; {counts}"
        raise UserError(message, key="preprocess", hint=hint)
    rules = "; ".join(f"{domain}: {_shown(getattr(preprocess.intensity, domain))}" for domain in others)
    return f"preprocess sets rules for {wanted}; {counts} and get the default rule ({rules})"


def _shown(rule: IntensityRule) -> str:
    """An intensity rule in words."""
    clip = "no clipping" if rule.clip == "none" else f"clipped by {rule.clip} {rule.low:g} to {rule.high:g}"
    return f"{clip}, {rule.normalize}"


@contextmanager
def _sharing(store: Path) -> Iterator[None]:
    """Several runs may fill one store; a run without others removes what a killed run left half written."""
    with open_lock(store / ".lock") as lock:
        alone = False
        with suppress(OSError):  # a file system without locks
            alone = try_lock(lock)
        abandoned = -1.0 if alone else ABANDONED_SECONDS
        for path in store.rglob(".*.part"):
            with suppress(FileNotFoundError):  # another run has just renamed it
                if time.time() - path.stat().st_mtime > abandoned:
                    path.unlink()
        with suppress(OSError):
            share_lock(lock)
        yield
        with suppress(OSError):
            if try_lock(lock):  # otherwise another run does it
                checksums.seal(store)


def _estimate(work: _Work, scans: Callable[[], Iterator[Scan]]) -> tuple[int, int]:
    """Counts the missing scans and the bytes of their voxels, and compares the needed room with the free room."""
    missing, voxels, plan = 0, 0, work.plan
    for scan in scans():
        if not writer.stored(plan, scan, work.connection):
            missing += 1
            if reason := writer.left_out(plan, scan, work.connection, work.limits):
                work.left_out[scan.scan_id] = reason
            else:
                voxels += writer.expected_bytes(plan, scan)
    needed = voxels * (writer.COMPRESSED if plan.tier == "chunked" else 1.0) / 1e9
    free = shutil.disk_usage(plan.store).free / 1e9
    if missing:
        log.info(f"{missing} scans to store, about {needed:.3g} GB; {free:.3g} GB free on the disk of {plan.store}")
    if needed > free:
        message = f"the store needs about {needed:.3g} GB and {free:.3g} GB are free"
        raise UserError(message, hint="Make room, choose another disk, or take fewer scans with where")
    return missing, voxels


def _run(work: _Work, scans: Iterator[Scan], missing: tuple[int, int], workers: int) -> tuple[int, int]:
    """Runs the jobs; returns how many scans were stored and how many skipped.

    The progress bar counts bytes, so that the time left does not depend on the order of the scans.
    """
    from tqdm.auto import tqdm

    stored = skipped = 0
    jobs = writer.jobs(work.plan, scans, work.connection, lambda scan: scan.scan_id in work.left_out)
    try:
        count, size = missing
        with tqdm(total=size, desc="cache", unit="B", unit_scale=True, disable=not count) as bar:
            for scan_id, reason in work.left_out.items():
                log.info(f"skipped {scan_id}: {reason}")
                skipped += 1
            for outcome in _outcomes(work, jobs, workers):
                writer.record_outcome(work.plan, work.connection, outcome)
                for scan_id, _, reason in outcome.skipped:
                    log.info(f"skipped {scan_id}: {reason}")
                for note in outcome.notes:
                    log.info(f"note: {note}")
                stored, skipped = stored + len(outcome.rows), skipped + len(outcome.skipped)
                bar.set_postfix_str(f"{stored + skipped} of {count} scans", refresh=False)
                bar.update(outcome.size)
    except disk.DiskFull as error:
        message = f"{error} ({stored} scans stored in this run, none lost)"
        raise UserError(message) from error
    return stored, skipped


def _outcomes(work: _Work, jobs: Iterator[tuple[Scan, ...]], workers: int) -> Iterator[Outcome]:
    """Results as they come; only a few jobs wait at a time, so memory does not grow with their number."""
    write = partial(writer.write_scans, work.plan)
    with Pool["Scan"](workers, work.limits, context=spawning(), setup=_start, ordered=False) as pool:
        for scans, outcome in pool.map(write, jobs):
            if isinstance(outcome, Lost):
                yield writer.record_lost(work.plan, work.connection, scans[0], outcome, work.limits)
            else:
                yield outcome


def _start() -> None:
    """Sets a worker process up: files for the owner only, one thread (there are as many workers as cores asked for)."""
    import blosc2

    os.umask(0o077)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    blosc2.set_nthreads(1)


def _log_summary(
    plan: StorePlan,
    scans: Callable[[], Iterator[Scan]],
    connection: sqlite3.Connection,
    counts: tuple[int, int, int],
) -> int:
    """Logs what the store holds after scans were stored, skipped and changed; returns how many scans it holds."""
    new, skipped, changed = counts
    rows = connection.execute("SELECT scan_id, dtype, details FROM scans")
    wanted = {scan.scan_id for scan in scans()}
    errors, other, total, clipped, unfitted = [], 0, 0, 0, 0
    for scan_id, _, details in rows:
        total += 1
        other += scan_id not in wanted
        known = json.loads(details)
        errors.append(known["error"])
        clipped += known["clipped"] > 0
        unfitted += plan.preprocess.stain.method != "none" and "stain" not in known
    inexact = [x for x in errors if x > 0]
    size = sum(path.stat().st_size for path in plan.store.rglob("*") if path.is_file())
    log.info(
        f"{plan.store}: {total} scans, {size / 1e9:.3g} GB ({new} new, {total - new} stored before, {skipped} skipped)"
    )
    if inexact:
        worst = f"at most half a step of the scan's own, {max(inexact):.3g} in the coarsest"
        log.info(f"  {len(inexact)} hold resampled or real numbers in 8 or 16 bits: rounded by {worst}")
    if clipped:
        log.info(f"  {clipped} had voxels beyond the clip bounds of their intensity rule, stored as the bound")
    if unfitted:
        log.info(f"  {unfitted} have too little tissue, or one stain, for preprocess.stain: their colors are unchanged")
    for line in _label_lines(plan, connection):
        log.info(f"  {line}")
    if changed:
        log.info(f"  {changed} took over a new subject, split or label value from the index")
    if other:
        log.info(f"  {other} are in the store but not in this selection of the index (kept)")
    return total


def _label_lines(plan: StorePlan, connection: sqlite3.Connection) -> list[str]:
    """Notes on the masks of a store: those without any class, and classes that no training scan has."""
    empty = total = 0
    values_by_dataset: dict[str, set[int]] = {}
    for dataset, split, details in connection.execute("SELECT dataset, split, details FROM scans"):
        counts = json.loads(details).get("classes")  # absent where there is no mask, and in older stores
        if counts is None:
            continue
        values = {int(value) for value in counts}
        total, empty = total + 1, empty + (values <= {0})
        values_by_dataset.setdefault(dataset, set())
        if split in ("train", ""):
            values_by_dataset[dataset] |= values
    lines = [f"{empty} of {total} masks hold background (0) only"] if empty else []
    for dataset, values in sorted(values_by_dataset.items()):
        schema = plan.schemas.get(dataset)
        absent = [f"{value}={name}" for value, name in schema.classes if value not in values] if schema else []
        if absent and values:
            lines.append(f"{dataset}: no mask of the training split holds {', '.join(absent)}")
    return lines
