"""DICOM files of somebody else: damage is the file's fault, a failing disk is not."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from segunlearn.dicom import reading
from segunlearn.dicom.reading import read_dicom
from segunlearn.errors import InvalidInputError


def bytes_with_a_sequence() -> tuple[bytes, int]:
    """A file, and where its sequence of undefined length begins."""
    dataset = Dataset()
    dataset.SOPInstanceUID = generate_uid()
    dataset.ReferencedSeriesSequence = Sequence([Dataset()])
    dataset["ReferencedSeriesSequence"].is_undefined_length = True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    content = buffer.getvalue()
    return content, content.index(b"\x08\x00\x15\x11SQ")


@pytest.mark.parametrize("kept", [12, 14])
def test_a_file_cut_off_in_a_sequence(tmp_path: Path, kept: int) -> None:
    """Of an item that is not there pydicom says that no tag can be read, by an OSError."""
    content, begin = bytes_with_a_sequence()
    path = tmp_path / "cut.dcm"
    path.write_bytes(content[: begin + kept])
    with pytest.raises(InvalidInputError, match=r"cut\.dcm: no DICOM file, or a damaged one"):
        read_dicom(path)


def test_a_failing_disk_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(reading, "dcmread", fail)
    path = tmp_path / "whole.dcm"
    path.write_bytes(bytes_with_a_sequence()[0])
    with pytest.raises(OSError, match="input/output"):
        read_dicom(path)
