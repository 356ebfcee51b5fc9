"""Kinds of labels, one file each: how a kind is parsed, which scans are chosen for it, and what a loss learns from."""
