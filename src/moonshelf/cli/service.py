"""Commands about the service: `serve`, and its `keys`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moonshelf.cli.console import print_json, say
from moonshelf.cli.options import Backend, Json, ModelName, flags
from moonshelf.errors import UserError


def serve(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(help="Folder that `moonshelf embed` made.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default 8765.")] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="API keys, as `moonshelf keys add` writes them.")
    ] = None,
    model: ModelName = None,
    backend: Backend = None,
    creative_model: Annotated[str | None, typer.Option(help="Judge of creatives, or off.")] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Embed the sample shop there first, if nothing is there.")
    ] = False,
) -> None:
    """Serve a catalogue: embeddings, search, upserts, duplicates, creatives, and a page for people.

    Every setting of docs/serving.md is a flag too, such as --deadline-s 10, and can stand in the environment
    (MOONSHELF_DEADLINE_S) or in the YAML file.
    """
    try:
        from moonshelf.service import run
        from moonshelf.service.settings import load_settings
    except ImportError as error:
        raise UserError(f"the service needs {error.name}: install moonshelf[serve].") from None
    settings = load_settings(
        folder, config, host=host, port=port, keys_file=keys_file, model=model, backend=backend,
        creative_model=creative_model, **flags(context.args),
    )  # fmt: skip
    if sample:
        run.make_sample(settings.folder, settings.model or "starter")
    raise typer.Exit(run.serve(settings))


keys = typer.Typer(
    help="API keys of the service: add, list, revoke.", no_args_is_help=True, pretty_exceptions_enable=False
)

KeysFile = Annotated[
    Path, typer.Option("--file", envvar="MOONSHELF_KEYS_FILE", help="File of keys, as --keys-file of serve.")
]


@keys.command()
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


@keys.command("list")
def list_(file: KeysFile, json: Json = False) -> None:
    """List names, rights and dates of the keys."""
    from moonshelf.service.keys import read_keys

    found = read_keys(file)
    if json:
        print_json([{"name": k.name, "scopes": sorted(k.scopes), "created": k.created} for k in found])
        return
    for key in found:
        print(f"{key.name:30} {'+'.join(sorted(key.scopes)):11} {key.created}")


@keys.command()
def revoke(name: Annotated[str, typer.Argument(help="Name of the key.")], file: KeysFile) -> None:
    """Take a key out of the file; a running service refuses it from the next request on."""
    from moonshelf.service.keys import revoke_key

    revoke_key(file, name)
    say(f"key {name} revoked")
