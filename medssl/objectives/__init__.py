"""Self-supervised objectives: one paper, one file."""
