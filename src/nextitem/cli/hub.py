"""The commands `nextitem push` and `nextitem pull`: runs in model repositories of the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_out, check_run
from nextitem.cli.options import Out, Overwrite

PUSH_EXAMPLES = (
    "Examples: nextitem push runs/sasrec me/shop-sasrec --license apache-2.0 | nextitem push runs/sasrec "
    "me/shop-sasrec --dry-run upload (the token comes from HF_TOKEN or `hf auth login`)"
)
PULL_EXAMPLES = "Example: nextitem pull me/shop-sasrec --out runs/pulled"

Repo = Annotated[str, typer.Argument(help="Repository of the hub, as owner/name.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch; to pull also a tag or a commit.")]


def push(
    run: Annotated[str, typer.Argument(help="Folder of a run.")],
    repo: Repo,
    license: Annotated[
        str, typer.Option("--license", help="Licence for the model card, by the hub's identifier.")
    ] = "other",
    private: Annotated[bool, typer.Option("--private/--public", help="Who sees a repository that is new.")] = True,
    revision: Revision = None,
    message: Annotated[str | None, typer.Option("--message", help="Message of the commit.")] = None,
    dry_run: Annotated[
        str | None, typer.Option("--dry-run", help="Folder to which the files are written; nothing is uploaded.")
    ] = None,
) -> None:
    """Upload a run to the Hugging Face hub, with a model card.

    The files are those of the run: recipe, weights, catalogue, identifiers, metrics. Data and checkpoints stay here.
    """
    check_run(run)
    if dry_run is not None:
        check_out(dry_run, resume=False, overwrite=False)
    from nextitem.pipeline.hub import push as push_run

    print(push_run(run, repo, license=license, private=private, revision=revision, message=message, dry_run=dry_run))


def pull(
    repo: Repo,
    out: Out,
    revision: Revision = None,
    allow_import: Annotated[
        bool, typer.Option("--allow-import", help="Allow a model whose class is in another package, and import it.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Download a run from the Hugging Face hub, and check it.

    Only the files of a run are downloaded; other files, wrong sizes or hashes, and runs that do not open are refused.
    """
    check_out(out, resume=False, overwrite=overwrite)
    from nextitem.pipeline.hub import pull as pull_run

    print(repr(pull_run(repo, out=out, revision=revision, allow_import=allow_import, overwrite=overwrite)))
