"""Checks that every encoder must pass."""
