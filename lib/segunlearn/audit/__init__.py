"""Measures of whether a study is really gone from a model; each module is usable alone.

Sets are divided by person: forget set S, retain set R, calibration set C (never trained on, an
algorithm may use it), test set T (never used by any algorithm). A figure is computed per study,
averaged per person, and only then aggregated.
"""
