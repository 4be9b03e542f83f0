"""Start the server: MONAI Label's own, with settings that work everywhere."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from segunlearn.app.options import AppOptions, Home
from segunlearn.app.security.addresses import is_loopback
from segunlearn.errors import InvalidInputError
from segunlearn.records.durable import write_durably

logger = logging.getLogger(__name__)

_MAIN = '''"""MONAI Label loads this file; everything lives in the package segunlearn."""

from segunlearn.app.application import SegUnlearnApp as SegUnlearnApp
'''


def prepare(
    studies: str, conf: Mapping[str, str], *, host: str, port: int
) -> tuple[dict[str, str], Home]:
    """Make the home's folders and return the environment of the server and its children.

    Parameters
    ----------
    studies
        DICOMweb URL or folder.
    conf
        Options of the app, see ``AppOptions``.
    host, port
        Where the server will listen.

    Returns
    -------
    dict, Home
        Environment variables to set before MONAI Label is imported, and the home.

    Raises
    ------
    InvalidInputError
        An option is wrong, there are no such studies, or other machines could reach a server
        without login.
    """
    options = AppOptions.from_conf(conf)
    if options.login == "off" and not options.let_everyone_in and not is_loopback(host):
        raise InvalidInputError(
            f"--host {host}: other machines would reach this server, and login is off: whoever "
            "comes could read every image and delete models. Switch it on (--login tokens, or "
            "--login oidc --issuer URL), listen on 127.0.0.1, or say --let-everyone-in if the "
            "network keeps strangers out."
        )
    home = Home(options.home)
    conf = {**conf, "home": str(home.root)}
    if options.people:  # the server runs in another folder
        conf["people"] = str(Path(options.people).expanduser().resolve())
    if options.viewer:
        conf["viewer"] = options.viewer
    if not studies.lower().startswith(("http://", "https://")):
        folder = Path(studies).expanduser().resolve()
        if not folder.is_dir():
            raise InvalidInputError(
                f"--studies {studies}: no such folder, and no DICOMweb URL (http://…)."
            )
        studies = str(folder)
    app_dir = home.root / "app"
    for name in ("model", "lib", "logs", "bin"):
        (app_dir / name).mkdir(parents=True, exist_ok=True)
    write_durably(app_dir / "main.py", _MAIN.encode())
    environment = {
        "MONAI_LABEL_APP_DIR": str(app_dir),
        "MONAI_LABEL_STUDIES": studies,
        "MONAI_LABEL_APP_CONF": json.dumps(conf),
        "MONAI_LABEL_SERVER_PORT": str(port),
        "MONAI_LABEL_SESSION_PATH": str(home.sessions),
        "MONAI_LABEL_AUTH_ENABLE": "false" if options.login == "off" else "true",
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false",
        # the platform reads it without asking whether it is set
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    # uploads spill over to temporary files, and libraries keep caches: nothing beside the home
    environment["TMPDIR"] = str(home.scratch().resolve())
    environment["TORCHINDUCTOR_CACHE_DIR"] = str((home.cache / "torch").resolve())
    environment["MPLCONFIGDIR"] = str((home.cache / "matplotlib").resolve())
    for key in ("MONAI_LABEL_TRACKING_ENABLED", "MONAI_LABEL_SESSION_PATH", "TMPDIR"):
        if os.environ.get(key):
            environment[key] = os.environ[key]
    return environment, home


def serve(
    studies: str,
    conf: Mapping[str, str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    root_path: str = "",
    log_level: str = "INFO",
    ssl_keyfile: Path | None = None,
    ssl_certfile: Path | None = None,
) -> None:
    """Serve until stopped.

    Parameters
    ----------
    studies, conf, host, port
        As in ``prepare``.
    root_path
        Path under which a reverse proxy shows the server.
    log_level
        ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``.
    ssl_keyfile, ssl_certfile
        PEM files for HTTPS.

    Raises
    ------
    InvalidInputError
        An option or the people file is wrong, there are no such studies, or the port is in use.
    ConflictError
        Another server works on this home.
    UnavailableError
        PostgreSQL did not answer for a minute.
    """
    os.umask(0o077)  # what it writes, caches of images too, is for its own account
    environment, home = prepare(studies, conf, host=host, port=port)
    keyfile, certfile = (str(p.resolve()) if p else None for p in (ssl_keyfile, ssl_certfile))
    os.environ.update(environment)
    tempfile.tempdir = None  # whoever asked before TMPDIR was set
    sys.setswitchinterval(0.0005)  # an inference gives way ten times as often to who answers
    os.chdir(home.root)  # MONAI Label reads a file .env of the folder it is started in
    import uvicorn
    from monailabel.interfaces.utils.app import app_instance

    from segunlearn.app import background
    from segunlearn.app.home_tidy import tidy
    from segunlearn.app.locks import server_lock
    from segunlearn.app.store_wait import wait_for_store

    if "login" in conf and certfile is None and not is_loopback(host):
        logger.warning("tokens travel in clear: give --ssl-certfile, or put a TLS proxy before it")
    log_config = _log_config(Path(environment["MONAI_LABEL_APP_DIR"]), log_level)
    with server_lock(home):
        _refuse_port_in_use(host, port)
        wait_for_store(home, AppOptions.from_conf(conf).store)
        tidy(home)
        config = uvicorn.Config(
            "monailabel.app:app",
            host=host,
            port=port,
            root_path=root_path,
            log_level=log_level.lower(),
            log_config=log_config,
            access_log=False,
            ssl_keyfile=keyfile,
            ssl_certfile=certfile,
            timeout_graceful_shutdown=3,  # viewers keep a stream of changes open
        )
        config.load()
        app_instance()  # kept for the server, in which an error would be a page of traceback
        server = uvicorn.Server(config)
        try:
            with suppress(KeyboardInterrupt):
                server.run()
        finally:  # else leaving would wait for a training to end; it is resumed by the next start
            for kind in ("train", "scoring", "batch_infer"):
                background.stop(kind)
    if not server.started:  # uvicorn has said why
        sys.exit(3)


def _refuse_port_in_use(host: str, port: int) -> None:
    """Refuse a port on which another program listens, before the app is built for nothing.

    What else may be wrong with an address is told by whoever listens on it.
    """
    with suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(address)
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        raise InvalidInputError(
                            f"--port {port}: another program listens there. Stop it, or choose "
                            "another port."
                        ) from error


def _log_config(app_dir: Path, level: str) -> dict[str, Any]:
    """MONAI Label's own configuration of logging, without the detour over a file in /tmp.

    Its INFO is left out: it holds whole requests, series and the URL of the store.
    """
    text = (Path(str(files("monailabel"))) / "logging.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    for handler in config["handlers"].values():
        if "filename" in handler:
            handler["filename"] = str(app_dir / "logs" / "app.log")
    config["root"]["level"] = level
    config["loggers"]["monailabel"] = {"level": "WARNING"}
    return config
