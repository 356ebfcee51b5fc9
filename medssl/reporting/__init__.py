"""Reports: pages, charts and pictures."""
