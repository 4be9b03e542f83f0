"""The file MONAI Label loads; everything lives in the installed package ``segunlearn``."""

from segunlearn.app.application import SegUnlearnApp as SegUnlearnApp
