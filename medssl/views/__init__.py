"""Computes views from raw crops, in batches on the device: geometry first, then intensity."""
