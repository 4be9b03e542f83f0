"""DICOM dates and times (PS3.5 section 6.2) as ISO 8601."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from pydicom.dataset import Dataset

_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
_TIME = re.compile(r"(\d{2}):?(\d{2})?:?(\d{2})?(?:\.(\d{1,6}))?")
_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")


def iso_date_time(date: Any, time: Any = None, offset: Any = None) -> str:
    """Join DICOM DA and TM values.

    Parameters
    ----------
    date, time
        ``YYYYMMDD`` and ``HHMMSS.FFFFFF``, the time shortened or missing.
    offset
        TimezoneOffsetFromUTC (0008,0201), ``+HHMM``; with it the result is UTC and ends in ``Z``.

    Returns
    -------
    str
        Microseconds are always there, so that results of one clock sort as text. Empty when the
        date is missing or invalid; an invalid time counts as midnight.

    Examples
    --------
    >>> iso_date_time("20240229", "1203")
    '2024-02-29T12:03:00.000000'
    >>> iso_date_time("20240229", "003000.5", "+0100")
    '2024-02-28T23:30:00.500000Z'
    >>> iso_date_time("20240230")
    ''
    """
    day = _DATE.fullmatch(str(date or "").strip())
    if day is None:
        return ""
    clock = _TIME.fullmatch(str(time or "").strip())
    parts = [int(p or 0) for p in clock.groups()[:3]] if clock else [0, 0, 0]
    fraction = int(((clock.group(4) or "") if clock else "").ljust(6, "0"))
    try:
        moment = datetime(*(int(g) for g in day.groups()))  # type: ignore[arg-type]
    except ValueError:
        return ""
    if parts[0] < 24 and parts[1] < 60 and parts[2] <= 60:  # 60 is a leap second
        moment += timedelta(
            hours=parts[0], minutes=parts[1], seconds=parts[2], microseconds=fraction
        )
    zone = zone_of(offset)
    if zone is None:
        return moment.isoformat(timespec="microseconds")
    moment = moment.replace(tzinfo=zone)
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def zone_of(offset: Any) -> timezone | None:
    """Read TimezoneOffsetFromUTC (0008,0201), ``+HHMM``; None where it tells no time zone.

    Examples
    --------
    >>> print(zone_of("-0500"), zone_of("+9900"), zone_of(None))
    UTC-05:00 None None
    """
    told = _OFFSET.fullmatch(str(offset or "").strip())
    if told is None:
        return None
    shift = timedelta(hours=int(told.group(2)), minutes=int(told.group(3)))
    if shift >= timedelta(days=1):
        return None
    return timezone(shift if told.group(1) == "+" else -shift)


def instant(moment: str) -> str:
    """Put what ``iso_date_time`` returned on one clock, so that moments sort as text.

    Parameters
    ----------
    moment
        Without an offset it is taken for local time of this machine.

    Returns
    -------
    str
        In UTC with ``Z``; as it was where it is empty or out of the calendar.

    Examples
    --------
    >>> instant("2024-02-28T23:30:00.500000Z"), instant("")
    ('2024-02-28T23:30:00.500000Z', '')
    """
    if not moment or moment.endswith("Z"):
        return moment
    try:
        local = datetime.fromisoformat(moment).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return moment
    return local.isoformat(timespec="microseconds").replace("+00:00", "Z")


def beside_study(moment: datetime, header: Dataset) -> tuple[datetime, str]:
    """Say how a time is written into an instance that takes its study's dates from a header.

    An offset from UTC is that of all dates of an instance (PS3.3 C.12.1.1.8), so it is the
    study's. Where the study tells none, none is needed: a time is local time of this machine. In
    the hour that comes twice at the end of summer time it has the offset of the study's day.

    Parameters
    ----------
    moment
        Without a time zone it is local time of this machine, with ``fold``.
    header
        Of an image of the study.

    Returns
    -------
    datetime, str
        Date and time without a zone, and TimezoneOffsetFromUTC (0008,0201), empty for none.
    """
    zone = zone_of(header.get("TimezoneOffsetFromUTC"))
    local = moment.astimezone().replace(tzinfo=None)
    first, second = (local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
    if zone is None and first == second:
        return local, ""
    if zone is None:
        try:
            study = iso_date_time(header.get("StudyDate"), header.get("StudyTime"))
            told = datetime.fromisoformat(study).astimezone()
        except (ValueError, OverflowError, OSError):  # no date, or one out of the calendar
            told = moment.astimezone()
        zone = zone_of(f"{told:%z}"[:5])
    there = moment.astimezone(zone)
    return there.replace(tzinfo=None), f"{there:%z}"
