"""Scans preprocessed once and kept in chunks."""
