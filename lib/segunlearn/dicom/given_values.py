"""Values of patient and study that an archive gave, written back as it gave them.

Archives hold dates, times and names that the standard forbids: ``00000000``, ``12:30:00``, two
names. highdicom refuses some of them, and warns of others by their value, in the log. So what it
builds gets empty ones, and these elements afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

#: What highdicom does not take as it stands.
REFUSED = ("PatientName", "PatientSex", "PatientBirthDate", "StudyDate", "StudyTime")


def copy_given(source: Dataset, target: Dataset, keywords: Sequence[str] = REFUSED) -> None:
    """Copy the elements that are not empty, value by value as they stand.

    Parameters
    ----------
    source
        Header of the archive.
    target
        Document or segmentation of ours.
    keywords
        Which elements.
    """
    for keyword in keywords:
        if source.get(keyword):
            target[keyword] = source[keyword]
