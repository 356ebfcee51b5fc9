"""Files and processes: atomic writes, locks, reading, tables as text, worker processes."""
