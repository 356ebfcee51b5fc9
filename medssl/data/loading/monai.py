"""The store for MONAI: a reader for ``LoadImaged``, and a dataset of crops for any MONAI transform.

LoadImaged("image", reader=StoreReader(store))({"image": "store:0f3a..."})
StoreDataset(store, size=(96, 96, 96), transforms=(Imported("monai.transforms.RandBiasFieldd", {"keys": "image"}),))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor
from monai.transforms import Compose, Randomizable
from torch.utils.data import Dataset

from medssl.data.loading.batches import BatchReader
from medssl.data.store.coding import decode
from medssl.data.store.preprocess import make_transform
from medssl.data.store.store import Store
from medssl.ops.draws import keyed_generator
from medssl.types import Sampling, UserError, ViewPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from medssl.types import Imported

PREFIX = "store:"


class StoreReader(ImageReader):  # type: ignore[misc]
    """Reads whole stored scans as ``store:SCAN_ID``, their labels as ``store:SCAN_ID#label``.

    Args:
        store: A store or its folder.
        normalize: Give the network's input (clipped, shifted, divided) instead of values in the scan's own unit.
    """

    def __init__(self, store: Store | Path, *, normalize: bool = False) -> None:
        super().__init__()
        self.store = store if isinstance(store, Store) else Store.open(store)
        self.normalize = normalize

    def verify_suffix(self, filename: Sequence[Path | str] | Path | str) -> bool:
        """Whether the name is one of the store's."""
        return all(str(name).startswith(PREFIX) for name in _names(filename))

    def read(self, data: Sequence[Path | str] | Path | str, **options: Any) -> list[tuple[int, bool]]:
        """Finds scans; nothing is read yet.

        Raises:
            UserError: The name is not of the store's form, or no such scan is there.
        """
        scans = []
        for name in map(str, _names(data)):
            if not name.startswith(PREFIX):
                message = f"{name}: expected {PREFIX}SCAN_ID or {PREFIX}SCAN_ID#label"
                raise UserError(message)
            scan_id, _, part = name.removeprefix(PREFIX).partition("#")
            scans.append((self.store.number(scan_id), part == "label"))
        return scans

    def get_data(self, img: Any) -> tuple[NDArray[Any], dict[str, Any]]:
        """Returns voxels [C, *s] (several scans joined along the channels) and MONAI's metadata."""
        arrays = [self._array(number, label) for number, label in img]
        affine = self.store.affine(img[0][0])
        meta = {
            "affine": affine,
            "original_affine": affine,
            "spatial_shape": np.asarray(arrays[0].shape[1:]),
            "original_channel_dim": 0,
            "space": "RAS",
        }
        return np.concatenate(arrays), meta

    def _array(self, number: int, label: bool) -> NDArray[Any]:
        shape = self.store.shape(number)
        origin = (0,) * len(shape)
        if label:
            return self.store.read_label(number, origin, shape)
        return decode(self.store.read(number, origin, shape), self.store.intensity(number), normalize=self.normalize)


class StoreDataset(Dataset[Any]):
    """Crops as dictionaries of MetaTensors with a true affine; item i is a function of (seed, i) alone.

    Args:
        store: A store or its folder.
        size: Voxels per axis; two axes on volumes take slices.
        sampling: Regions per scan, slices, foreground; None takes the defaults.
        length: Items; None takes as many as there are scans.
        transforms: MONAI dictionary transforms by import path, run after the crop; random ones are seeded by item.
        split: Scans that take part; None takes all.
        seed: Names the sequence.
    """

    def __init__(
        self,
        store: Store | Path,
        *,
        size: tuple[int, ...],
        sampling: Sampling | None = None,
        length: int | None = None,
        transforms: tuple[Imported, ...] = (),
        split: str | None = None,
        seed: int = 0,
    ) -> None:
        self.store = store if isinstance(store, Store) else Store.open(store)
        plan = ViewPlan((), sampling or Sampling())
        self.reader = BatchReader(self.store, plan, size, 1, seed, split, {"workers": 0, "with_labels": True})
        self.length = len(self.reader.order.scans) if length is None else length
        self.transform = Compose([make_transform(step, key="transforms") for step in transforms])
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item ``index``: "image" [C, *size] as the network sees it, "label" where the store has labels, "scan_id"."""
        if not 0 <= index < self.length:
            message = f"item {index} of {self.length}"
            raise IndexError(message)
        reader = self.reader
        number = reader.order(index // reader.sampling.regions_per_scan)
        codes = np.empty(reader.image[0][1:], reader.image[1])
        label = None if reader.label is None else np.empty(reader.label[0][1:], np.int32)
        start, _, _, world, *_ = reader.fill(index, number, codes, label)
        affine = world.copy()
        affine[:-1, -1] += world[:-1, :-1] @ start
        at = torch.from_numpy(affine)
        item: dict[str, Any] = {
            "image": MetaTensor(torch.from_numpy(decode(codes, self.store.intensity(number))), affine=at),
            "scan_id": self.store.scan_id(number),
        }
        if label is not None:
            item["label"] = MetaTensor(torch.from_numpy(label), affine=at)
        for step in self.transform.transforms:
            if isinstance(step, Randomizable):
                step.set_random_state(seed=int(keyed_generator(self.seed, index, "monai").integers(2**32)))
        out: dict[str, Any] = self.transform(item)
        return out


def _names(filename: Sequence[Path | str] | Path | str) -> Sequence[Path | str]:
    return [filename] if isinstance(filename, str | Path) else filename
