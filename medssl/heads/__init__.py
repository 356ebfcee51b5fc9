"""Heads that are fine-tuned with labels on top of an encoder."""
