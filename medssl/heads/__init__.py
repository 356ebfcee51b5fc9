"""Heads: networks on top of an encoder that are fine-tuned with labels."""
