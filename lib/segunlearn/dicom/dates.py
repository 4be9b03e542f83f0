"""DICOM dates and times (PS3.5 section 6.2) as ISO 8601."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

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
    zone = _OFFSET.fullmatch(str(offset or "").strip())
    if zone is None:
        return moment.isoformat(timespec="microseconds")
    shift = timedelta(hours=int(zone.group(2)), minutes=int(zone.group(3)))
    moment = moment.replace(tzinfo=timezone(shift if zone.group(1) == "+" else -shift))
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


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
