"""The `nextitem` command: it parses options, makes one call of the pipeline, and prints errors as one clear line."""

from __future__ import annotations

import os
import sys
import time

import typer

from nextitem.cli import (
    align,
    compare,
    data,
    demo,
    evaluate,
    export,
    hub,
    import_data,
    models,
    rank,
    recommend,
    report,
    scale,
    serve,
    similar,
    simulate,
    tokenize,
    train,
    tune,
    update,
)
from nextitem.core.errors import UserError

app = typer.Typer(
    name="nextitem",
    help="Train, evaluate and compare recommenders, classic and generative, on an interaction log.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", epilog=demo.EXAMPLES)(demo.demo)
app.add_typer(data.app, name="data")
app.command("import", epilog=import_data.EXAMPLES)(import_data.import_data)
app.command("tokenize", epilog=tokenize.EXAMPLES)(tokenize.tokenize)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("tune", epilog=tune.EXAMPLES)(tune.tune)
app.command("scale", epilog=scale.EXAMPLES)(scale.scale)
app.command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("recommend", epilog=recommend.EXAMPLES)(recommend.recommend)
app.command("rank", epilog=rank.EXAMPLES)(rank.rank)
app.command("similar", epilog=similar.EXAMPLES)(similar.similar)
app.command("serve", epilog=serve.EXAMPLES)(serve.serve)
app.command("update", epilog=update.EXAMPLES)(update.update)
app.command("align", epilog=align.EXAMPLES)(align.align)
app.command("report", epilog=report.EXAMPLES)(report.report)
app.command("simulate", epilog=simulate.EXAMPLES)(simulate.simulate)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.command("push", epilog=hub.PUSH_EXAMPLES)(hub.push)
app.command("pull", epilog=hub.PULL_EXAMPLES)(hub.pull)
app.command("models", epilog=models.EXAMPLES)(models.models)


def main() -> None:
    """Run the command line. A user's mistake prints one line on stderr and ends with exit code 2, not a traceback."""
    command = typer.main.get_command(app)
    try:
        _prepare_process()
        code = command.main(standalone_mode=False)
    except UserError as error:
        code = _fail(str(error))
    except BrokenPipeError:  # the reader of the pipe has ended: `nextitem models | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if os.environ.get("NEXTITEM_DEBUG") or error.strerror is None:
            raise
        code = _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        # Typer contains its own copy of click's exceptions; both copies have this method.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "nextitem"
        message = error.format_message()
        code = _fail(f"{message} See: {where} --help") if message else 2
    sys.exit(code if isinstance(code, int) else 0)


def _prepare_process() -> None:
    """Silence all but the first process of torchrun. Raises UserError if the command cannot run under torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is loaded: its hints do not concern our users
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command not in ("train", "evaluate", ""):
        raise UserError(f"torchrun runs nextitem train and evaluate only; start nextitem {command} without it")


def _fail(message: str) -> int:
    """Print an error as one line on stderr, and return the exit code."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(10)  # the first process prints it, and torchrun would end that one as soon as this one ends
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
