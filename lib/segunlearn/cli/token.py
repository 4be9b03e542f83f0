"""``segunlearn token``: who may use a server that was started with ``--login tokens``."""

from __future__ import annotations

from typing import Annotated

import typer

from segunlearn.cli.common import (
    DEFAULT,
    HomeOption,
    JsonOption,
    StoreOption,
    home_of,
    operator,
    print_json,
)
from segunlearn.cli.tables import print_table
from segunlearn.errors import InvalidInputError
from segunlearn.records.trail import TrailEntry

#: As the server names them, the weakest first; each includes those before it.
ROLES = ("user", "annotator", "reviewer", "admin")

token = typer.Typer(
    no_args_is_help=True, help="Give people and programs access to the server, and take it back."
)


@token.command()
def create(
    role: Annotated[
        str,
        typer.Option(
            help="user: look and segment; annotator: also save and mark; reviewer: the same, under "
            "another name in the records; admin: also approve, train, unlearn and purge."
        ),
    ],
    name: Annotated[str, typer.Option(help="Who holds it; stands in the trail.")],
    days: Annotated[int, typer.Option(help="Days until it expires.")] = 90,
    home: HomeOption = DEFAULT,
    store: StoreOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a token and show it, once: only its digest is kept."""
    from segunlearn.app.records import Records
    from segunlearn.records.access_tokens import AccessTokens

    if role not in ROLES:
        raise InvalidInputError(f"--role {role}: use one of {', '.join(ROLES)}.")
    records = Records(home_of(home), store)
    text, made = AccessTokens(records.store).create(name, role, days)
    records.trail.append(
        TrailEntry("token_create", operator(), "", "command line", "token", made.token_id,
                   note=f"{role} for {name} until {made.expires[:10]}")
    )  # fmt: skip
    if as_json:
        print_json({"token": text, "id": made.token_id, "expires": made.expires})
        return
    typer.echo(text)
    typer.echo(
        f"For {name}, {role}, until {made.expires[:10]}. It is not shown again; take it back by "
        f"'segunlearn token revoke {made.token_id}'.",
        err=True,
    )


@token.command("list")
def list_tokens(
    home: HomeOption = DEFAULT, store: StoreOption = "", as_json: JsonOption = False
) -> None:
    """List all tokens with their holders and states."""
    from segunlearn.cli.common import records_of
    from segunlearn.records.access_tokens import AccessTokens

    found = AccessTokens(records_of(home_of(home), store).store).list()
    if as_json:
        print_json([{**vars(t), "state": t.state} for t in found])
        return
    rows = [(t.token_id, t.name, t.role, t.state, t.created[:10], t.expires[:10]) for t in found]
    print_table(("id", "holder", "role", "state", "made", "expires"), rows)


@token.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="Its id, as 'token list' shows.")],
    home: HomeOption = DEFAULT,
    store: StoreOption = "",
) -> None:
    """Make a token useless from the next request on; sessions begun with it end too."""
    from segunlearn.cli.common import records_of
    from segunlearn.records.access_tokens import AccessTokens

    records = records_of(home_of(home), store)
    revoked = AccessTokens(records.store).revoke(token_id)
    records.trail.append(
        TrailEntry("token_revoke", operator(), "", "command line", "token", token_id,
                   note=f"of {revoked.name}")
    )  # fmt: skip
    typer.echo(f"The token of {revoked.name} is revoked.")
