"""The command `nextitem align`: train the generator of a run towards a reward, by the lists that it generates."""

from __future__ import annotations

from typing import Annotated

import typer

from nextitem.cli.early import check_out, check_run
from nextitem.cli.options import Device, Out, Overwrite, Resume, Seed, log
from nextitem.core.errors import UserError

EXAMPLES = (
    "Examples: nextitem align runs/depth-decoder --method ecpo --reward clicks --out runs/aligned | "
    "nextitem align runs/tiger --method dpo --reward runs/din --out RUN --steps 200 "
    "--set alignment.method.last_code_only=true"
)
METHODS = ("rsft", "dpo", "s-dpo", "ipa", "grpo", "ecpo", "gbpo", "tpma")


def align(
    run: Annotated[str, typer.Argument(help="Folder of a run of a generator: tiger, depth-decoder, ...")],
    out: Out,
    method: Annotated[str, typer.Option("--method", help=f"Way to learn: {', '.join(METHODS)}.")] = "ecpo",
    reward: Annotated[
        str,
        typer.Option(
            "--reward",
            help="clicks or purchases (P-score of each item), session (the list as a whole), or the folder of a run of "
            "a ranker or of an aligned run.",
        ),
    ] = "clicks",
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Number of epochs.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Number of steps altogether, instead of --epochs.")
    ] = None,
    lists: Annotated[
        int | None, typer.Option("--lists", min=2, help="Number of lists that are generated for each request.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting, for example --set alignment.sft_weight=0.5; may be repeated."),
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train the generator of a run towards a reward, and write an aligned run.

    Prints accuracy, modelled reward, legality and diversity before and after; on the shop the true reward, too.
    """
    check_run(run)
    if method not in METHODS:
        raise UserError(f"--method {method!r}: choose one of {', '.join(METHODS)}")
    check_out(out, resume=resume, overwrite=overwrite)
    import json
    from pathlib import Path

    from nextitem.pipeline.align import FIGURES_FILE, REPORT_FILE
    from nextitem.pipeline.align import align as run_alignment
    from nextitem.reporting.alignment_report import print_alignment

    outcome = run_alignment(
        run, out=out, method=method, reward=reward, overrides=settings or [], epochs=epochs, steps=steps, lists=lists,
        seed=seed, device=device, resume=resume, overwrite=overwrite, log=log,
    )  # fmt: skip
    print_alignment(json.loads((Path(out) / FIGURES_FILE).read_text(encoding="utf-8")))
    print(
        f"{outcome.run.folder}: {outcome.run.name} aligned by {method}, best epoch {outcome.best_epoch}; "
        f"curves in {Path(out) / REPORT_FILE}"
    )
