"""``medssl embed``: features of the tiles of slides, or of the slices of volumes, as folders of bags."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medssl.data.bags.description import BagEncoder, BagRecord
from medssl.data.bags.files import Layout
from medssl.data.bags.writer import BagWriter
from medssl.encoders.base import Encoder
from medssl.inference.predictor import Windows
from medssl.io.permissions import owner_only
from medssl.io.trust import names
from medssl.probing.feature_extractor import freeze, initial_weights_of_run
from medssl.probing.slice_bags import bag_of_slices, slice_facts
from medssl.probing.tile_bags import bag_of_tiles, tile_facts
from medssl.training.axes import open_store
from medssl.training.initial_weights import Allowed, with_channels
from medssl.types import UserError

if TYPE_CHECKING:
    from medssl.data.bags.description import BagFacts
    from medssl.data.bags.files import Bag
    from medssl.data.store.store import Store
    from medssl.probing.feature_extractor import FrozenEncoder

log = logging.getLogger(__name__)

_SHOWN = 10


@dataclass(frozen=True)
class EmbedResult:
    """What was embedded.

    Attributes:
        out: Folder of the bags.
        bags: How many bags are in it.
        new: How many of them this call made.
        skipped: Identifier and reason of each scan that could not be embedded.
        exit_code: 0; 1 where no scan could be embedded.
    """

    out: Path
    bags: int
    new: int
    skipped: tuple[tuple[str, str], ...] = ()
    exit_code: int = 0


@owner_only()
def embed(  # noqa: PLR0913 (the keys of a command line)
    run: Path,
    *,
    store: Path,
    out: Path,
    split: str | None = None,
    layout: Layout = "safetensors",
    half: bool = True,
    from_scratch: bool = False,
    encoder: Callable[[], Encoder] | None = None,
    seed: int = 0,
    window: tuple[int, ...] | None = None,
    slice_axis: int | None = None,
    windows: Windows = Windows(batch_size=32),  # noqa: B008 (frozen)
    allow: tuple[Allowed, ...] = (),
    trust: str = "",
) -> EmbedResult:
    """Compute the features of a frozen encoder: a bag for each slide, volume or image.

    Rows of a bag are the tiles of a slide, the slices of a volume, or the windows of an image. ``medssl finetune``
    trains heads of bags on the folder. Finished bags are not computed again.

    Args:
        run: Run folder of ``medssl pretrain`` or ``medssl finetune``, its card, or a file of weights (with
            ``encoder``).
        store: Folder written by ``medssl cache``.
        out: Folder of the bags; created if missing. It holds those of one encoder.
        split: Split to embed; None embeds all scans.
        layout: Files of the bags: "safetensors", or "hdf5" as TRIDENT lays them out.
        half: Store features in half precision, which takes half of the space.
        from_scratch: Take random weights of the same architecture: the baseline.
        encoder: Encoder: a preset or an import path. Needed if ``run`` is a file of weights; else that of the card is
            taken.
        seed: Seed of random weights, 0 or more.
        window: Pixels per axis that the encoder sees at once; None takes the size of the tiles of a store of slides,
            or else the window of the card.
        slice_axis: Stored axis across which volumes are cut into slices, 0 to 2; None takes that of the card, or 2.
        windows: Sliding windows: overlap, batch size, precision, device and mirroring.
        allow: Names, with commas: "channels", "preprocess", as in ``medssl finetune``.
        trust: Import paths, with commas, of classes that are not part of medssl and that a card or configuration may
            load.

    Returns:
        How many bags there are.

    Raises:
        UserError: Something the user can put right.
    """
    initial = initial_weights_of_run(run, encoder, from_scratch=from_scratch, trust=names(trust))
    opened = open_store(store, initial, allow, slides=True)
    initial = with_channels(initial, opened.channels, allow)
    if window is None and opened.tier == "slides":
        window = (opened.preprocess.tiles.size,) * 2
    frozen, loaded = freeze(initial, opened, windows, window=window, slice_axis=slice_axis, seed=seed)
    log.info(f"{opened.path}: {len(opened)} scans; {loaded}")
    card = None if initial.card is None else asdict(initial.card.encoder)
    digest = str(frozen.made_by["weights"])
    made_by = BagEncoder(digest, type(frozen.encoder).__name__, initial.provenance, card)
    facts, bag_of = _road(frozen, opened, made_by, half=half)
    axes = next(iter(opened.axes)) if len(opened.axes) == 1 else 2
    return _write(opened, opened.scans(split, axes=axes).tolist(), (out, facts, layout), bag_of)


def _road(
    frozen: FrozenEncoder, store: Store, encoder: BagEncoder, *, half: bool
) -> tuple[BagFacts, Callable[[int], Bag]]:
    """What the bags of a store are, and the function that makes one."""
    if store.axes == {3}:
        facts = replace(slice_facts(frozen, store, encoder.subjects), encoder=encoder)
        return facts, lambda number: _stored(bag_of_slices(frozen, store, number), half=half)
    if store.axes == {2}:
        return tile_facts(frozen, store, encoder), partial(bag_of_tiles, frozen, store, half=half)
    message = f"{store.path} holds volumes and images"
    raise UserError(message, key="store", expected="a store of one kind of scans")


def _stored(bag: Bag, *, half: bool) -> Bag:
    """A bag with features in the precision that they are stored in."""
    return replace(bag, features=bag.features.astype("float16" if half else "float32"))


def _write(
    store: Store, scans: list[int], to: tuple[Path, BagFacts, Layout], bag_of: Callable[[int], Bag]
) -> EmbedResult:
    """Writes the bags that are missing; a scan that cannot be read is skipped and listed."""
    from tqdm.auto import tqdm

    out, facts, layout = to
    new, skipped = 0, []
    with BagWriter(out, facts, layout=layout) as writer:
        for number in tqdm(scans, desc="embed", unit="scan"):
            scan_id, split = store.scan_id(number), store.split(number)
            record = BagRecord(scan_id, store.subject(number), split, store.values(number))
            if writer.has(scan_id):
                writer.describe(record)
                continue
            try:
                writer.write(record, bag_of(number))
            except (UserError, ValueError) as error:
                if isinstance(error, UserError) and error.key:  # an option, and no scan, is wrong
                    raise
                skipped.append((scan_id, str(error)))
                continue
            new += 1
        count = len(writer.records)
    for scan_id, reason in skipped[:_SHOWN]:
        log.info(f"skipped {scan_id}: {reason}")
    if len(skipped) > _SHOWN:
        log.info(f"skipped {len(skipped) - _SHOWN} more")
    log.info(f"{out}: {count} bags ({new} new, {count - new} already present), {len(skipped)} skipped")
    return EmbedResult(out, count, new, tuple(skipped), 0 if count else 1)
