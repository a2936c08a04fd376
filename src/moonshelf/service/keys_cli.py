"""`moonshelf keys`: make, list and revoke the API keys of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moonshelf.shell import Json, print_json, say

app = typer.Typer(
    help="API keys of the service: add, list, revoke.", no_args_is_help=True, pretty_exceptions_enable=False
)

KeysFile = Annotated[
    Path, typer.Option("--file", envvar="MOONSHELF_KEYS_FILE", help="File of keys, as --keys-file of serve.")
]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Who uses the key; logs and feedback show it.")],
    file: KeysFile,
    read_only: Annotated[bool, typer.Option("--read-only", help="May search and embed, not write.")] = False,
) -> None:
    """Make a key and print it on stdout, once: the file keeps only its hash.

    A read-only key may embed, search and compare; it may not change products or leave feedback.
    """
    from moonshelf.service.keys import ALL, READ, add_key

    plain = add_key(file, name, READ if read_only else ALL)
    say(f"key {name} added to {file}; keep what follows, it is not shown again:")
    print(plain)


@app.command("list")
def list_(file: KeysFile, json: Json = False) -> None:
    """List names, rights and dates of the keys."""
    from moonshelf.service.keys import read_keys

    keys = read_keys(file)
    if json:
        print_json([{"name": k.name, "scopes": sorted(k.scopes), "created": k.created} for k in keys])
        return
    for key in keys:
        print(f"{key.name:30} {'+'.join(sorted(key.scopes)):11} {key.created}")


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="Name of the key.")], file: KeysFile) -> None:
    """Take a key out of the file; a running service refuses it from the next request on."""
    from moonshelf.service.keys import revoke_key

    revoke_key(file, name)
    say(f"key {name} revoked")
