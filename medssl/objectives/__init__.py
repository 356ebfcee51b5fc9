"""Self-supervised objectives: one file for each paper."""
