"""DICOM: slices from headers, volumes from the slices of a series, and pixels of volumes."""
