"""Checks that every encoder passes."""
