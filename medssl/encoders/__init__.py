"""Image encoders behind one contract, and functions that save and load their weights."""
