"""The log names no patient: UIDs in messages, tracebacks too, become the site's pseudonyms."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable

from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import SegUnlearnError

#: Five numbers and more with dots between (PS3.5 section 9), neither an address nor a version, also
#: with the leading zeros that some write; or a UUID's number below 2.25 (PS3.5 section B.2).
_UID = re.compile(r"(?<![\w.])(?:[0-2](?:\.\d+){4,}|2\.25\.\d{6,}(?:\.\d+)*)(?!\w)")


class Nameless(logging.Filter):
    """Writes pseudonyms in place of UIDs.

    Parameters
    ----------
    pseudonyms
        Those of the site; asked for when the first UID comes.
    """

    def __init__(self, pseudonyms: Callable[[], Pseudonyms]) -> None:
        super().__init__()
        self._pseudonyms = pseudonyms

    def filter(self, record: logging.LogRecord) -> bool:
        """Change what the record says; every record passes."""
        text = record.getMessage()
        if _UID.search(text):
            record.msg, record.args = self._without_uids(text), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = self._without_uids(
                logging.Formatter().formatException(record.exc_info)
            )
        return True

    def _without_uids(self, text: str) -> str:
        try:
            return _UID.sub(lambda found: self._pseudonyms().of(found[0]), text)
        except (SegUnlearnError, OSError):  # the home cannot be read
            return _UID.sub("(a UID)", text)


def hide_identifiers(pseudonyms: Callable[[], Pseudonyms]) -> None:
    """Let every handler of this process write pseudonyms; a second call changes nothing.

    pydicom warns of values out of the standard, birth dates and names, by the value: it is silent.
    """
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom(\.|$)")
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {h for logger in loggers for h in logger.handlers}:
        if not any(isinstance(f, Nameless) for f in handler.filters):
            handler.addFilter(Nameless(pseudonyms))
