"""Which process this is, and whether another one still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, told apart from a later one with the same number.

    Parameters
    ----------
    host
        Host name and machine id.
    boot
        Id of the machine's present boot; empty where the system does not tell.
    pid_space
        Namespace in which ``pid`` counts: containers on one machine have their own.
    pid
        Process number.
    start
        Clock ticks between boot and the process' start; 0 where the system does not tell.
    """

    host: str
    boot: str
    pid_space: str
    pid: int
    start: int


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _start_of(pid: int) -> int | None:
    """Start of a living process in ticks; 0 when unknown, None when it is dead or a zombie."""
    stat = _read(f"/proc/{pid}/stat")
    if stat:
        fields = stat.rpartition(")")[2].split()  # the name, in parentheses, may hold spaces
        return None if fields[0] in ("Z", "X") else int(fields[19])
    if _read("/proc/self/stat"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


@lru_cache(maxsize=1)
def _machine() -> tuple[str, str, str]:
    host = f"{socket.gethostname()}/{_read('/etc/machine-id')}"
    try:
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - the target is no path
    except OSError:
        space = ""
    return host, _read("/proc/sys/kernel/random/boot_id"), space


def this_process() -> ProcessIdentity:
    """Identity of the calling process."""
    host, boot, space = _machine()
    pid = os.getpid()
    return ProcessIdentity(host, boot, space, pid, _start_of(pid) or 0)


def is_alive(process: ProcessIdentity) -> bool | None:
    """Whether a process still runs; None when it cannot be seen from here (another machine)."""
    host, boot, space = _machine()
    if process.host != host:
        return None
    if process.boot != boot:
        return False
    if process.pid_space != space:
        return None
    start = _start_of(process.pid)
    if start is None:
        return False
    return start == process.start or 0 in (start, process.start)
