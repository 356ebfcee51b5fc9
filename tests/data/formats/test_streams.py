"""Packed streams: what a damaged one is called."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib

import numpy as np
import pytest

from medssl.data.formats.base import FormatError
from medssl.data.formats.voxels.streams import Source, unpacked

CONTENT = np.random.default_rng(0).integers(0, 40, 5000).astype(np.uint8).tobytes()  # packed, but hardly predictable
PACK = {
    "gzip": lambda content: gzip.compress(content, mtime=0),
    "zlib": zlib.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def refused(tmp_path, packing, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match=f"^truncated or damaged: {message}$"):
        list(unpacked(Source(tmp_path / "x", 0, packing)))


@pytest.mark.parametrize("packing", ["gzip", "zlib"])
def test_a_checksum_that_does_not_match_is_named(tmp_path, packing):
    content = bytearray(PACK[packing](CONTENT))
    content[-8 if packing == "gzip" else -1] ^= 1
    refused(tmp_path, packing, content, f"the checksum of the {packing} stream does not match its content")


def test_a_length_that_does_not_match_is_named(tmp_path):
    content = bytearray(PACK["gzip"](CONTENT))
    content[-1] ^= 1
    refused(tmp_path, "gzip", content, "the length of the gzip stream does not match its content")


@pytest.mark.parametrize("packing", PACK)
def test_the_end_that_lacks_is_named(tmp_path, packing):
    refused(tmp_path, packing, PACK[packing](CONTENT)[:-20], f"the {packing} stream has no end")


@pytest.mark.parametrize("packing", PACK)
def test_no_words_of_a_library_are_passed_on(tmp_path, packing):
    """Every flipped bit of a stream leads to one of our sentences, or to a stream that is read."""
    sound, told = PACK[packing](CONTENT), set()
    for place in range(0, len(sound), max(1, len(sound) // 150)):
        content = bytearray(sound)
        content[place] ^= 1 << place % 8
        (tmp_path / "x").write_bytes(content)
        try:
            list(unpacked(Source(tmp_path / "x", 0, packing)))
        except FormatError as error:
            told.add(str(error).removeprefix("truncated or damaged: "))
    assert told
    assert told <= {
        f"the checksum of the {packing} stream does not match its content",
        f"the length of the {packing} stream does not match its content",
        f"the {packing} stream begins with bytes that are not valid",
        f"the {packing} stream holds codes that are not valid",
        f"the {packing} stream has no end",
    }
