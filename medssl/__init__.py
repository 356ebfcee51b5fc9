"""medssl: pretrain an image encoder on your own unlabelled scans, then need only a few labels."""

__version__ = "0.1.0"
