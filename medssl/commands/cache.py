"""The verb `medssl cache`: preprocess the scans of an index once, into a store that crops are read from."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.data.store import checksums, disk, records
from medssl.data.store import writer as filling
from medssl.data.store.store import Store, Tier
from medssl.data.store.verify import mend
from medssl.data.store.verify import verify as verify_store
from medssl.io.limits import Limits, total_memory_gb
from medssl.io.locks import open_lock, share_lock, try_lock
from medssl.io.permissions import owner_only
from medssl.io.processes import Lost, Pool, spawning
from medssl.types import Preprocess, UserError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator

    from medssl.data.index.scan_index import Index
    from medssl.data.store.writer import Filling, Outcome
    from medssl.types import IntensityRule, LabelSchema, Scan

log = logging.getLogger(__name__)

ABANDONED_SECONDS = 3600.0  # a part file untouched for so long is left from a run that was killed, whoever else works


@dataclass(frozen=True)
class CacheResult:
    """What a store holds.

    Attributes:
        store: Its folder.
        scans: How many scans are in it.
        new: How many of them this call stored.
        skipped: How many scans of the selection could not be stored.
        damaged: Identifiers of scans that differ from their checksums, where the store was verified.
        exit_code: 0; 1 where the store holds nothing, or something damaged.
    """

    store: Path
    scans: int
    new: int = 0
    skipped: int = 0
    damaged: tuple[str, ...] = ()
    exit_code: int = 0


@owner_only()
def cache(  # noqa: PLR0913 (the keys of a command line)
    index: Path,
    store: Path,
    *,
    preprocess: Preprocess | None = None,
    where: str | None = None,
    tier: Tier = "chunked",
    workers: int = 2,
    seconds: float = 60.0,
    memory_gb: float | None = None,
    verify: bool = False,
) -> CacheResult:
    """Preprocess the scans of an index once and write them to a store in chunks. Only missing scans are processed.

    Args:
        index: Index file written by ``medssl index``.
        store: Folder of the store; created if missing.
        preprocess: Orientation, spacing, foreground crop, intensity rules and own transforms; None takes the defaults.
        where: SQL condition on the columns of the index, such as "modality = 'CT'"; None takes all scans.
        tier: "chunked" compresses; "raw" does not, and maps files into memory: for data sets that fit in it.
        workers: Processes, 0 or more. 0 works in this process, which a file that makes a decoder crash or hang then
            ends or blocks.
        seconds: Time limit for one scan in seconds, plus one second for every 2 MB of voxels.
        memory_gb: Memory limit for one scan in GB; None takes nine tenths of the machine's memory.
        verify: Only compare every byte of the store with its checksums.

    Returns:
        What the store holds now.
    """
    from medssl.data.index.datasets import all_phantoms
    from medssl.data.index.scan_index import Index
    from medssl.data.store.preprocess import check

    check(preprocess or Preprocess())
    if verify:
        return _verify(store)
    with Index.open(index) as opened:
        scans = partial(opened.scans, where)
        domains: Counter[str] = Counter()
        datasets: set[str] = set()
        for scan in scans():
            domains[scan.source.value_domain] += 1
            datasets.add(scan.source.dataset)
        names = sorted(datasets)
        if not names:
            message = f"{index} has no good scan" + (f" that meets the condition where: {where}" if where else "")
            raise UserError(message)
        if note := check_domains(preprocess or Preprocess(), domains):
            log.info(f"note: {note}")
        schemas = {name: opened.schema(name) for name in names}
        for line in mend(store):
            log.info(f"note: {line}")
        made = Store.create(
            store,
            preprocess or Preprocess(),
            tier=tier,
            schema=_one(schemas),
            index_digest=opened.digest(),
            synthetic=all_phantoms(opened, names),
        )
        plan = filling.Filling(opened.root, made.path, made.preprocess, tier, schemas)
        with _sharing(store), closing(records.connect(store / "records.sqlite")) as connection:
            changed = filling.refresh(plan, scans(), connection)
            limit = memory_gb or 0.9 * total_memory_gb()
            work = _Work(plan, connection, Limits(seconds, limit, partial(filling.seconds_for, plan)))
            missing = _estimate(work, scans)
            done = _run(work, scans(), missing, workers)
            return _summary(plan, opened, scans, connection, (*done, changed))


@dataclass
class _Work:
    """A run: its plan, the table, the limits of one scan, and which scans are not tried, with the reason."""

    plan: Filling
    connection: sqlite3.Connection
    limits: Limits
    left_out: dict[str, str] = field(default_factory=dict)


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
        what = f"index with files.modality {modality}" if modality else "choose another preset of preprocess"
        message = (
            f"preprocess sets rules for {wanted}; {counts}: {what}, or set preprocess.domains "
            f"[{next(iter(others))}] to take the default rule for them"
        )
        raise UserError(message)
    rules = "; ".join(f"{domain}: {_shown(getattr(preprocess.intensity, domain))}" for domain in others)
    return f"preprocess sets rules for {wanted}; {counts} and get the default rule ({rules})"


def _shown(rule: IntensityRule) -> str:
    """An intensity rule in words."""
    clip = "no clipping" if rule.clip == "none" else f"clipped by {rule.clip} {rule.low:g} to {rule.high:g}"
    return f"{clip}, {rule.normalize}"


def _one(schemas: dict[str, LabelSchema | None]) -> LabelSchema | None:
    """The class map, where all data sets that have one have the same."""
    found = {schema for schema in schemas.values() if schema is not None}
    return found.pop() if len(found) == 1 else None


@contextmanager
def _sharing(store: Path) -> Iterator[None]:
    """Several runs may fill one store; the one that finds itself alone clears what a killed run left half written."""
    with open_lock(store / ".lock") as lock:
        alone = False
        with suppress(OSError):  # a file system without locks
            alone = try_lock(lock)
        abandoned = -1.0 if alone else ABANDONED_SECONDS
        for path in store.rglob(".*.part"):
            with suppress(FileNotFoundError):  # whoever writes it has just put it in its place
                if time.time() - path.stat().st_mtime > abandoned:
                    path.unlink()
        with suppress(OSError):
            share_lock(lock)
        yield
        with suppress(OSError):
            if try_lock(lock):  # otherwise others are at work, who do it
                checksums.seal(store)


def _verify(store: Path) -> CacheResult:
    """Compares a whole store with its checksums and lists what is damaged."""
    from tqdm.auto import tqdm

    with tqdm(desc="verify", unit="B", unit_scale=True) as bar:
        found = verify_store(store, bar.update)
    for text in found.files:
        log.info(f"damaged {text}")
    for scan_id, text in found.damaged.items():
        log.info(f"damaged {scan_id}: {text}")
    if found.without:
        log.info(
            f"note: {found.without} of {found.checked} scans were stored without checksums: only sizes are compared"
        )
    if not found.sealed:
        log.info(
            "note: caching has not ended since the store was changed: cache the index again to check all of the table"
        )
    damaged = len(found.damaged)
    if damaged or found.files:
        log.info(
            f"{store}: {found.checked} scans, {damaged} damaged: cache the index again into this store, which "
            "stores them anew"
        )
        return CacheResult(store, found.checked, damaged=tuple(found.damaged), exit_code=1)
    log.info(f"{store}: {found.checked} scans, none damaged")
    return CacheResult(store, found.checked)


def _estimate(work: _Work, scans: Callable[[], Iterator[Scan]]) -> tuple[int, int]:
    """Counts the missing scans and the bytes of their voxels, and compares the needed room with the free room."""
    missing, voxels, plan = 0, 0, work.plan
    for scan in scans():
        if not filling.stored(plan, scan, work.connection):
            missing += 1
            if reason := filling.left_out(plan, scan, work.connection, work.limits):
                work.left_out[scan.scan_id] = reason
            else:
                voxels += filling.expected_bytes(plan, scan)
    needed = voxels * (filling.COMPRESSED if plan.tier == "chunked" else 1.0) / 1e9
    free = shutil.disk_usage(plan.store).free / 1e9
    if missing:
        log.info(f"{missing} scans to store, about {needed:.3g} GB; {free:.3g} GB free on the disk of {plan.store}")
    if needed > free:
        message = (
            f"the store needs about {needed:.3g} GB and {free:.3g} GB are free: make room, choose another disk, "
            "or take fewer scans with where"
        )
        raise UserError(message)
    return missing, voxels


def _run(work: _Work, scans: Iterator[Scan], missing: tuple[int, int], workers: int) -> tuple[int, int]:
    """Works off the jobs; returns how many scans were stored and how many skipped.

    The bar goes by bytes, so that the time left does not depend on which scans come first.
    """
    from tqdm.auto import tqdm

    stored = skipped = 0
    jobs = filling.jobs(work.plan, scans, work.connection, lambda scan: scan.scan_id in work.left_out)
    try:
        count, size = missing
        with tqdm(total=size, desc="cache", unit="B", unit_scale=True, disable=not count) as bar:
            for scan_id, reason in work.left_out.items():
                log.info(f"skipped {scan_id}: {reason}")
                skipped += 1
            for outcome in _outcomes(work, jobs, workers):
                filling.keep(work.plan, work.connection, outcome)
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
    fill = partial(filling.fill, work.plan)
    with Pool["Scan"](workers, work.limits, context=spawning(), setup=_start, ordered=False) as pool:
        for scans, outcome in pool.map(fill, jobs):
            if isinstance(outcome, Lost):
                yield filling.lose(work.plan, work.connection, scans[0], outcome, work.limits)
            else:
                yield outcome


def _start() -> None:
    """Sets a worker process up: files for the owner only, one thread (there are as many workers as cores asked for)."""
    import blosc2

    os.umask(0o077)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    blosc2.set_nthreads(1)


def _summary(
    plan: Filling,
    index: Index,
    scans: Callable[[], Iterator[Scan]],
    connection: sqlite3.Connection,
    done: tuple[int, int, int],
) -> CacheResult:
    """Says what the store holds now."""
    new, skipped, changed = done
    held = connection.execute("SELECT scan_id, dtype, details FROM scans")
    wanted = {scan.scan_id for scan in scans()}
    errors, other, total, clipped = [], 0, 0, 0
    for scan_id, _, details in held:
        total += 1
        other += scan_id not in wanted
        known = json.loads(details)
        errors.append(known["error"])
        clipped += known["clipped"] > 0
    inexact = [x for x in errors if x > 0]
    size = sum(path.stat().st_size for path in plan.store.rglob("*") if path.is_file())
    log.info(
        f"{plan.store}: {total} scans, {size / 1e9:.3g} GB ({new} new, {total - new} there already, {skipped} skipped)"
    )
    if inexact:
        worst = f"at most half a step of the scan's own, {max(inexact):.3g} in the coarsest"
        log.info(f"  {len(inexact)} hold resampled or real numbers in 8 or 16 bits: rounded by {worst}")
    if clipped:
        log.info(f"  {clipped} had voxels beyond the clip bounds of their intensity rule, stored as the bound")
    for line in _label_lines(plan, connection):
        log.info(f"  {line}")
    if changed:
        log.info(f"  {changed} took over a new subject, split or label value from the index")
    if other:
        log.info(f"  {other} are in the store but not in this selection of the index (kept)")
    return CacheResult(plan.store, total, new=new, skipped=skipped, exit_code=0 if total else 1)


def _label_lines(plan: Filling, connection: sqlite3.Connection) -> list[str]:
    """What is odd about the masks of a store: those without any class, and classes that training never shows."""
    empty = total = 0
    held: dict[str, set[int]] = {}
    for dataset, split, details in connection.execute("SELECT dataset, split, details FROM scans"):
        counts = json.loads(details).get("classes")  # absent where there is no mask, and in older stores
        if counts is None:
            continue
        values = {int(value) for value in counts}
        total, empty = total + 1, empty + (values <= {0})
        held.setdefault(dataset, set())
        if split in ("train", ""):
            held[dataset] |= values
    lines = [f"{empty} of {total} masks hold background (0) only"] if empty else []
    for dataset, values in sorted(held.items()):
        schema = plan.schemas.get(dataset)
        lost = [f"{value}={name}" for value, name in schema.classes if value not in values] if schema else []
        if lost and values:
            lines.append(f"{dataset}: no mask of the training split holds {', '.join(lost)}")
    return lines
