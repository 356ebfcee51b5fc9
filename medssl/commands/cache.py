"""The verb `medssl cache`: preprocess the scans of an index once, into a store that crops are read from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.data.store.caching import CachingOptions, Selection, cache_scans, verify_with_progress
from medssl.data.store.naming import Tier
from medssl.io.permissions import owner_only
from medssl.types import Preprocess, UserError

if TYPE_CHECKING:
    from medssl.data.index.scan_index import Index


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
        tier: "chunked" compresses; "raw" does not, and maps files into memory: for data sets that fit in it. "slides"
            is for whole slides: it stores where their tissue is, and training reads the slides themselves.
        workers: Processes, 0 or more. 0 works in this process, which a file that makes a decoder crash or hang then
            ends or blocks.
        seconds: Time limit for one scan in seconds, plus one second for every 2 MB of voxels.
        memory_gb: Memory limit for one scan in GB; None takes nine tenths of the machine's memory.
        verify: Only compare every byte of the store with its checksums.

    Returns:
        What the store holds now.
    """
    from medssl.data.index.scan_index import Index
    from medssl.data.store.preprocess import check

    rules = preprocess or Preprocess()
    check(rules)
    if verify:
        findings = verify_with_progress(store)
        return CacheResult(store, findings.checked, damaged=tuple(findings.damaged), exit_code=0 if findings.ok else 1)
    with Index.open(index) as opened:
        options = CachingOptions(tier, workers, seconds, memory_gb)
        totals = cache_scans(_selection(opened, where), store, rules, options)
    return CacheResult(store, totals.scans, totals.new, totals.skipped, exit_code=0 if totals.scans else 1)


def _selection(index: Index, where: str | None) -> Selection:
    """The scans of an index that meet a condition.

    Raises:
        UserError: No scan does.
    """
    from medssl.data.index.datasets import all_phantoms

    scans = partial(index.scans, where)
    domains: Counter[str] = Counter()
    datasets: set[str] = set()
    for scan in scans():
        domains[scan.source.value_domain] += 1
        datasets.add(scan.source.dataset)
    if not datasets:
        message = f"{index.file} has no usable scan" + (" that meets the condition" if where else "")
        raise UserError(message, key="where" if where else "", got=where)
    schemas = {name: index.schema(name) for name in sorted(datasets)}
    return Selection(scans, domains, index.root, schemas, index.digest(), all_phantoms(index, datasets))
