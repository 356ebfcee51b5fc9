"""medssl: pretrain an image encoder on your own unlabelled scans, then need only a few labels."""

from medssl.safe_path import leave_working_folder

__version__ = "0.1.0"

leave_working_folder()  # python -m imports this package first
