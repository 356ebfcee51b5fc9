"""File formats: one module each, which says suffixes and first bytes, and reads header and pixels."""
