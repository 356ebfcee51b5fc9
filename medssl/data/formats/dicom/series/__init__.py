"""The slices of one DICOM series: which of them make a volume or an image."""
