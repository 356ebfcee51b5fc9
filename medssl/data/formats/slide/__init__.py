"""Whole slides: recognized, described for the index, and read region by region at any pixel size."""

from __future__ import annotations

from medssl.data.formats.slide.base import Details, Level
from medssl.data.formats.slide.reader import SlideReader, open_slide

__all__ = ["Details", "Level", "SlideReader", "open_slide"]
