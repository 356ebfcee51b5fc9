"""From a store to batches of raw crops."""
