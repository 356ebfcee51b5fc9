"""medssl: pretrain an image encoder on your own unlabeled scans, then need only a few labels."""

from medssl.io.safe_path import leave_working_folder

__version__ = "0.1.0"

leave_working_folder()  # python -m imports this package first
