"""From folders of scans to batches of raw crops."""
