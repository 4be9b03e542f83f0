"""Processes without ten seconds of imports: forked from one that did them once.

A server and its tasks stay processes of their own, with their own memory and locks, killed and
waited for as in the product; only how they begin is replaced.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

#: Environment variable with the socket at which a server asks for the process of a task.
SOCKET = "SEGUNLEARN_TEST_FORKS"
_CREDENTIALS = struct.Struct("3i")


class Forks:
    """Forks processes, for itself and for who asks at a socket.

    Parameters
    ----------
    address
        Of the socket.
    task
        What a task's process does with its name.
    """

    def __init__(self, address: Path, task: Callable[[str], None]) -> None:
        self._task = task
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ, self._asked)

    def fork(
        self,
        call: Callable[[], None],
        out: int,
        env: Mapping[str, str],
        given: int,
        ended: Callable[[int], None],
    ) -> int:
        """Run a call in a new process.

        Parameters
        ----------
        call
            Its end is the end of the process.
        out, given
            Files that become its output and its input.
        env
            Its environment.
        ended
            Is told the exit code; minus the signal if one killed it.

        Returns
        -------
        int
            The process's number.
        """
        assert threading.active_count() == 1, "a fork would copy the locks of other threads"
        pid = os.fork()
        if pid:
            watch = os.pidfd_open(pid)
            self._selector.register(
                watch, selectors.EVENT_READ, partial(self._reap, pid, watch, ended)
            )
            return pid
        code = 1
        try:
            for inner, outer in ((given, 0), (out, 1), (out, 2)):
                os.dup2(inner, outer)
            os.environ.clear()
            os.environ.update(env)
            call()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001  it ends here, not in the copied callers
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Serve who asks until something is true, at most so long; returns whether it is."""
        deadline = time.monotonic() + seconds
        while not condition() and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(min(left, 0.05)):
                key.data()
        return condition()

    def _reap(self, pid: int, watch: int, ended: Callable[[int], None]) -> None:
        self._selector.unregister(watch)
        os.close(watch)
        ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def _asked(self) -> None:
        """Fork the process of a task."""
        link, _ = self._listener.accept()
        content, files, _, _ = socket.recv_fds(link, 1 << 16, 2)
        while not content.endswith(b"\n"):
            content += link.recv(1 << 16)
        asked = json.loads(content)
        starter, *_ = _CREDENTIALS.unpack(
            link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )

        def call() -> None:
            alive = os.pidfd_open(starter)  # the real parent is another: say what a task asks for
            os.getppid = lambda: 1 if select.select([alive], [], [], 0)[0] else starter
            self._task(asked["kind"])

        def ended(code: int) -> None:
            with link, suppress(OSError):  # who asked may be gone
                link.sendall(f"{code}\n".encode())

        given, out = files
        pid = self.fork(call, out, asked["env"], given, ended)
        os.close(given)
        os.close(out)
        link.sendall(f"{pid}\n".encode())


class Popen:
    """Stands for ``subprocess.Popen`` of a task in the server."""

    def __init__(self, words: list[str], *, env: Mapping[str, str], **_: Any) -> None:
        given, stdin = os.pipe()
        stdout, out = os.pipe()
        self._link = socket.socket(socket.AF_UNIX)
        self._link.connect(env[SOCKET])
        asked = json.dumps({"kind": words[-1], "env": dict(env)}).encode() + b"\n"
        socket.send_fds(self._link, [asked], [given, out])
        os.close(given)
        os.close(out)
        self.stdin, self.stdout = os.fdopen(stdin, "w"), os.fdopen(stdout)
        self._told = self._link.makefile()
        self.pid = int(self._told.readline())
        self.returncode: int | None = None
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        self.returncode = int(self._told.readline() or -1)

    def wait(self, timeout: float | None = None) -> int:
        """As of ``subprocess.Popen``."""
        self._thread.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("task", timeout or 0)
        return self.returncode

    def kill(self) -> None:
        """As of ``subprocess.Popen``."""
        if self.returncode is None:
            os.kill(self.pid, 9)
