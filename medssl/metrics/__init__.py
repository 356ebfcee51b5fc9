"""Measures and statistics; nothing here launches a run."""
