"""``segunlearn serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segunlearn.app.options import DEFAULT_HOME
from segunlearn.errors import InvalidInputError


def serve(
    studies: Annotated[
        str,
        typer.Option(
            help="DICOMweb URL (http://host:port/dicom-web), folder of DICOM files, or folder of "
            "NIfTI or NRRD files."
        ),
    ],
    home: Annotated[
        Path,
        typer.Option(
            envvar="SEGUNLEARN_HOME", help="Folder of the store, the models and the caches."
        ),
    ] = DEFAULT_HOME,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    conf: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY VALUE", help="Option of the app; may be repeated."),
    ] = None,
    values: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    root_path: Annotated[
        str, typer.Option(help="Path under which a reverse proxy shows the server.")
    ] = "",
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
    login: Annotated[
        str,
        typer.Option(
            envvar="SEGUNLEARN_LOGIN",
            help="off: this machine alone, without login; tokens: of 'segunlearn token create'; "
            "oidc: OpenID Connect.",
        ),
    ] = "",
    issuer: Annotated[
        str,
        typer.Option(envvar="SEGUNLEARN_ISSUER", help="URL of the OpenID Connect issuer."),
    ] = "",
    let_everyone_in: Annotated[
        bool,
        typer.Option(
            "--let-everyone-in",
            help="Serve other machines without login: whoever reaches the port reads every image "
            "and may delete models.",
        ),
    ] = False,
    ssl_keyfile: Annotated[Path | None, typer.Option(help="PEM file for HTTPS.")] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(help="PEM file for HTTPS.")] = None,
) -> None:
    """Serve the app with its REST interface and the viewer at /ohif/."""
    from segunlearn.app.server import serve as run

    options = {
        "home": str(home.expanduser().resolve()),
        **({"login": login} if login else {}),
        **({"issuer": issuer} if issuer else {}),
        **({"let_everyone_in": "true"} if let_everyone_in else {}),
        **pairs(conf or [], values or []),
    }
    run(
        studies,
        options,
        host=host,
        port=port,
        root_path=root_path,
        log_level=log_level.upper(),
        ssl_keyfile=ssl_keyfile,
        ssl_certfile=ssl_certfile,
    )


def pairs(keys: list[str], values: list[str]) -> dict[str, str]:
    """Join ``--conf KEY`` with the words that follow; ``KEY=VALUE`` needs none.

    Raises
    ------
    InvalidInputError
        A key has no value, or a word has no key.

    Examples
    --------
    >>> pairs(["labels", "device=cpu"], ["liver,spleen"])
    {'labels': 'liver,spleen', 'device': 'cpu'}
    """
    words, found = iter(values), {}
    for text in keys:
        key, sign, value = text.partition("=")
        found[key.strip()] = value.strip() if sign else next(words, "").strip()
        if not found[key.strip()]:
            raise InvalidInputError(f"--conf {text}: the value is missing; write --conf KEY VALUE.")
    left = list(words)
    if left:
        raise InvalidInputError(f"unexpected words {' '.join(left)!r}; write --conf KEY VALUE.")
    return found
