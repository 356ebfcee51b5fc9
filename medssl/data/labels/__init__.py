"""Labels of scans: where they come from, what they say, which are chosen to learn from."""
