"""DICOM: studies and series from an archive, volumes from series, label maps to and from SEG."""
