"""Folders of bags: features of the tiles of each slide, with coordinates, labels and subjects."""
