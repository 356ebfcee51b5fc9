"""Heads for bags (multiple-instance learning), one file each: tiles of a slide, or slices of a volume, one answer."""
