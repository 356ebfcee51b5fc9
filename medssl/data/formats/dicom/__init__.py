"""DICOM: one header to slices, the slices of a series to volumes, and the pixels of a volume."""
