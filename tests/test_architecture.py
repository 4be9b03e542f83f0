"""What must not import what, checked in fresh interpreters."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

from segunlearn import errors


def imports(module: str, *unwanted: str) -> bool:
    """Whether importing ``module`` in a fresh interpreter loads one of ``unwanted``."""
    code = f"import sys, {module}; sys.exit(42 * any(m in sys.modules for m in {unwanted!r}))"
    status = subprocess.run([sys.executable, "-c", code], check=False).returncode
    assert status in (0, 42), f"{module} cannot be imported"
    return status == 42


@pytest.mark.parametrize(
    "module",
    ["segunlearn.records.ledger", "segunlearn.dicom.segmentation", "segunlearn.adapters.deposit"],
)
def test_an_auditor_reads_records_without_torch(module: str) -> None:
    assert not imports(module, "torch", "monai", "monailabel", "fastapi")


@pytest.mark.parametrize("module", ["segunlearn.training", "segunlearn.evaluation"])
def test_only_the_app_knows_monai_label(module: str) -> None:
    assert not imports(module, "monailabel", "fastapi")


def test_the_check_itself_can_fail() -> None:
    assert imports("json", "json")


def test_every_error_has_a_status_and_stands_in_the_tree() -> None:
    tree = inspect.getdoc(importlib.import_module("segunlearn.errors")) or ""
    for name, cls in vars(errors).items():
        if inspect.isclass(cls):
            assert issubclass(cls, errors.SegUnlearnError)
            assert name in tree
            assert cls is errors.SegUnlearnError or 400 <= cls.http_status <= 503
