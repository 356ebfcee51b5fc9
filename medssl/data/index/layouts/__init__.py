"""Data sets in layouts that many tools share, read as they are: nnU-Net, BIDS, Medical Segmentation Decathlon, CSV.

A layout fills the ordinary rules where the user left them at their defaults (``fill``), and says of single files what
no rule can say: which are no scans, which are channels of another file, whose masks they are (``open_layout``).
"""

from __future__ import annotations

from pathlib import Path

from medssl.data.index.layouts import bids, decathlon, manifest, nnunet
from medssl.data.index.layouts.base import Filled, Layout
from medssl.data.index.scan_index import IndexOptions
from medssl.types import UserError

_MODULES = {"nnunet": nnunet, "bids": bids, "decathlon": decathlon, "csv": manifest}


def fill(options: IndexOptions, folder: Path) -> Filled:
    """The rules of a data set in ``folder``, with what its layout says.

    Raises:
        UserError: The folder lacks something that the layout needs, or holds something that it cannot be read by.
    """
    if not options.layout:
        return Filled(options)
    try:
        filled = _MODULES[options.layout].fill(options, folder)
    except UserError as error:
        raise error.changed(message=f"layout {options.layout}: {error.message}") from error
    return Filled(filled.options, f"layout {options.layout}: {filled.summary}")


def open_layout(options: IndexOptions, folder: Path) -> Layout:
    """What the layout of a data set says of its files; ``options`` are those that ``fill`` has made."""
    return _MODULES[options.layout].layout(options, folder) if options.layout else Layout()
