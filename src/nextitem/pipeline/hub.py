"""Push of a run to a model repository of the Hugging Face hub, with a model card, and pull of one from there.

A repository contains the files of a bundle and README.md, nothing else: no data, no checkpoints, nothing pickled. What
is pulled is not trusted: only the names of a bundle's files are downloaded, their sizes and hashes are checked, and the
run must open before it takes its place.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextitem.core.errors import UserError
from nextitem.pipeline.folders import check_out, prepare_out
from nextitem.pipeline.model_card import model_card
from nextitem.pipeline.runs import Run, load_run

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REQUIRED_FILES = ("recipe.toml", "weights.safetensors", "catalog.parquet")
OPTIONAL_FILES = ("identifiers.safetensors", "identifiers.json", "requests.json", "events.json", "metrics.json")
CARD = "README.md"
IGNORED_FILES = (CARD, ".gitattributes")  # of a repository; they are not part of a run
IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # package.module:Class
MAX_TEXT_BYTES = 2**28  # of a JSON or TOML file
MAX_BYTES = 2**36  # of all files


def push(
    run: Run | str | Path,
    repo: str,
    *,
    license: str = "other",
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    dry_run: str | Path | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload a run to a model repository of the hub, with a model card; the repository is created if it is missing.

    Args:
        run: a run, or its folder.
        repo: name of the repository, such as "owner/name".
        license: licence of the model, by the hub's identifier, for the card.
        private: whether a new repository is private.
        revision: branch to upload to; None: the default branch.
        message: message of the commit; None: a default.
        dry_run: a folder to which the files are written instead; nothing is uploaded.
        api: client of the hub; None: one of the environment (HF_ENDPOINT, HF_TOKEN or `hf auth login`).

    Returns:
        Address of the commit, or the folder of a dry run.

    Raises:
        UserError: the folder is no run or contains a link that leads out of it, huggingface_hub is not installed, the
            name is no name of a repository, or the hub refuses the upload.

    """
    opened = run if isinstance(run, Run) else load_run(run)
    files = run_files(opened.folder)
    with _hub_errors(repo):
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        validate_repo_id(repo)
        card = model_card(opened, repo, license=license)
        if dry_run is not None:
            folder = prepare_out(dry_run)
            for file in files:
                shutil.copyfile(file, folder / file.name)
            (folder / CARD).write_text(card, encoding="utf-8")
            return str(folder)
        client = HfApi() if api is None else api
        client.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(file.name, str(file)) for file in files]
        operations.append(CommitOperationAdd(CARD, card.encode()))
        message = f"Upload a run of {opened.name}" if message is None else message
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            commit = client.create_commit(repo, operations, commit_message=message, revision=revision)
    return str(commit.commit_url)


def pull(
    repo: str,
    *,
    out: str | Path,
    revision: str | None = None,
    allow_import: bool = False,
    overwrite: bool = False,
    api: HfApi | None = None,
) -> Run:
    """Download a run from a model repository of the hub, check it, and open it.

    Args:
        repo: name of the repository, such as "owner/name".
        out: the folder of the run; refused if it is not empty.
        revision: branch, tag or commit; None: the default branch.
        allow_import: allow a recipe that names a class of another package, whose module is then imported.
        overwrite: replace a run that is in `out`.
        api: client of the hub; None: one of the environment (HF_ENDPOINT, HF_TOKEN or `hf auth login`).

    Returns:
        The run.

    Raises:
        UserError: the repository is missing or cannot be read, contains files that are no part of a run, a file is
            damaged or too large, the recipe names a class of another package, the run cannot be opened, or `out` may
            not be written.

    """
    check_out(out, overwrite=overwrite)
    Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=Path(out).absolute().parent) as temporary:
        downloads, checked = Path(temporary) / "downloads", Path(temporary) / "run"
        checked.mkdir()
        with _hub_errors(repo):
            from huggingface_hub import HfApi

            client = HfApi() if api is None else api
            info = client.model_info(repo, revision=revision, files_metadata=True)
            siblings = info.siblings or []
            check_names({each.rfilename: each.size for each in siblings}, repo)
            for each in siblings:
                if each.rfilename in IGNORED_FILES:
                    continue
                path = client.hf_hub_download(repo, each.rfilename, revision=info.sha, local_dir=downloads)
                check_content(Path(str(path)), each, repo)
                shutil.copyfile(str(path), checked / each.rfilename)
        if not allow_import:
            check_recipe(checked / "recipe.toml", repo)
        load_run(checked)
        folder = prepare_out(out, overwrite=overwrite)
        for file in sorted(checked.iterdir()):
            shutil.move(file, folder / file.name)
    return load_run(folder)


def run_files(folder: Path) -> list[Path]:
    """Return the files of a run that are uploaded.

    Raises UserError if a file is missing, or is a link that leads out of the folder.
    """
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is not a run: it has no {', '.join(missing)}; make one with: nextitem train")
    files = [folder / name for name in (*REQUIRED_FILES, *OPTIONAL_FILES) if (folder / name).is_file()]
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{file} is a link to a file outside of the run; replace it by the file to upload it")
    return files


def check_names(sizes: dict[str, int | None], repo: str) -> None:
    """Raise UserError if the files of a repository are not those of a run, or too large.

    `sizes` are the names of all files, and their sizes in bytes (None: not stated).
    """
    expected = (*REQUIRED_FILES, *OPTIONAL_FILES, *IGNORED_FILES)
    unexpected = [name for name in sizes if name not in expected]
    if unexpected:
        raise UserError(
            f"{repo} contains {', '.join(repr(name) for name in unexpected[:3])}, which no run does, so it is not "
            "downloaded; ask its owner for a repository that nextitem push has written"
        )
    missing = [name for name in REQUIRED_FILES if name not in sizes]
    if missing:
        raise UserError(f"{repo} is no run: it has no {', '.join(missing)}; it needs what nextitem push writes")
    for name, size in sizes.items():
        if name not in IGNORED_FILES and size is None:
            raise UserError(f"{repo}: the hub states no size of {name}, so it is not downloaded; push the run again")
        if name.endswith((".json", ".toml")) and (size or 0) > MAX_TEXT_BYTES:
            raise UserError(f"{repo}: {name} has {size:,} bytes, more than any run's; ask its owner to push it again")
    if sum(size or 0 for size in sizes.values()) > MAX_BYTES:
        raise UserError(f"{repo} has more than {MAX_BYTES / 2**30:.0f} GiB; download it with: hf download {repo}")


def check_content(file: Path, entry: Any, repo: str) -> None:
    """Raise UserError if a downloaded file has another size or hash than the hub states in `entry`."""
    data_size = file.stat().st_size
    if data_size != entry.size:
        raise UserError(f"{repo}: {entry.rfilename} has {data_size:,} bytes instead of {entry.size:,}; pull again")
    if entry.lfs is not None:
        digest, expected = hashlib.sha256(), entry.lfs.sha256
    elif entry.blob_id is not None:
        digest, expected = hashlib.sha1(f"blob {data_size}\0".encode()), entry.blob_id  # as git hashes a file
    else:
        return
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise UserError(
            f"{repo}: {entry.rfilename} is damaged: its hash is not the one that the hub states; pull again"
        )


def check_recipe(file: Path, repo: str) -> None:
    """Raise UserError if a recipe names a class by its import path: opening the run would import that module."""
    try:
        recipe = tomllib.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{repo}: recipe.toml is damaged ({error}); ask its owner to push it again") from None
    for name in _import_paths({key: value for key, value in recipe.items() if key not in ("data", "ids")}):
        raise UserError(
            f"{repo}: the recipe names {name!r}, a class of another package. If you trust the repository, and that "
            "package is installed, add --allow-import"
        )


def _import_paths(value: Any, key: str = "") -> Iterator[str]:
    """Yield every text of a recipe that may be the import path of a class: below `name` or `model` any with a colon."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _import_paths(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _import_paths(part, key)
    elif isinstance(value, str) and (IMPORT_PATH.fullmatch(value) or (key in ("name", "model") and ":" in value)):
        yield value


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn errors of the hub and its client into UserErrors of one line, which contain no token."""
    try:
        from huggingface_hub import errors
    except ImportError:
        raise UserError("the hub needs the extra `text`; install it with: pip install 'nextitem[text]'") from None
    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is no name of a repository: {error}; write owner/name") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{repo}: no such repository, or no access to it; check the name, and HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo} has no such revision; choose another --revision") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        reason = "; check HF_TOKEN, or log in with: hf auth login" if status in (401, 403) else "; try again later"
        raise UserError(f"{repo}: the hub refuses the request (status {status}){reason}") from None
    except (errors.LocalTokenNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(f"{repo}: {str(error).splitlines()[0]}") from None
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # of the client's HTTP library
        raise UserError(f"{repo}: the hub cannot be reached ({type(error).__name__}); check the network") from None
