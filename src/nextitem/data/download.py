"""Download public data sets from their official addresses, and write them as dataset folders.

Downloads can be resumed, and are checked if a checksum is published. The dataset folder appears only when everything in
it is complete. The code that converts the files exists once, in data/importers: `nextitem import` applies it to files
that were downloaded before.
"""

from __future__ import annotations

import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nextitem.core.errors import UserError
from nextitem.data.importers.importing import fill_folder, is_complete, md5, new_folder, published_md5, write_readme
from nextitem.data.importers.report import Report

Log = Callable[[str], None]

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 60  # seconds without a byte after which a connection fails
ATTEMPTS = 5  # attempts after a broken connection; each continues at the byte at which the former one ended


@dataclass(frozen=True)
class Source:
    """A public data set: its files, its licence, and the importer that converts it to a dataset folder.

    Attributes:
        files: address of a file -> address of its published MD5, or None.
        licence: permitted use, in words.
        citation: publication to cite.
        importer: name of the importer (importers.names) that reads the files.

    """

    files: dict[str, str | None]
    licence: str
    citation: str
    importer: str


def _movielens(name: str) -> Source:
    """Return the source of one size of MovieLens, for example "ml-1m"."""
    address = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    return Source(
        {address: f"{address}.md5"},
        "for research; no redistribution without permission, no commercial use without permission of GroupLens",
        "Harper, Konstan: The MovieLens Datasets. ACM TiiS 5(4), 2015",
        name,
    )


def _amazon(category: str) -> Source:
    """Return the source of the 5-core reviews and the metadata of one category of Amazon (2014)."""
    base = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
    return Source(
        {f"{base}/reviews_{category}_5.json.gz": None, f"{base}/meta_{category}.json.gz": None},
        "for research, with citation; no explicit licence to redistribute",
        "McAuley, Targett, Shi, van den Hengel: Image-based recommendations on styles and substitutes. SIGIR 2015",
        "amazon14",
    )


DATASETS: dict[str, Source] = {
    **{size: _movielens(size) for size in ("ml-100k", "ml-1m", "ml-10m", "ml-20m", "ml-25m", "ml-32m")},
    "amazon14-beauty": _amazon("Beauty"),
    "amazon14-sports": _amazon("Sports_and_Outdoors"),
    "amazon14-toys": _amazon("Toys_and_Games"),
    "online-retail": Source(
        {"https://archive.ics.uci.edu/static/public/352/online+retail.zip": None},
        "CC BY 4.0",
        "Chen: Online Retail. UCI Machine Learning Repository, 2015, doi 10.24432/C5BW33",
        "online-retail",
    ),
}


def download(
    name: str,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    log: Log = lambda text: None,
    sources: dict[str, Source] | None = None,
) -> Path:
    """Fetch a data set, write it as a dataset folder, and return the path of the folder.

    Args:
        name: a key of DATASETS.
        out: the dataset folder. Until the download is complete, its files lie in `<out>.download`.
        resume: continue with the files in `<out>.download`; a complete `out` stays as it is.
        overwrite: replace an existing data set in `out`.
        log: callback that prints one line of progress.
        sources: data sets by name; None: DATASETS.

    Raises:
        UserError: the name is unknown, `out` exists already, an address cannot be reached, or a file differs from the
            published one.

    """
    table = DATASETS if sources is None else sources
    if name not in table:
        raise UserError(f"no data set is called {name!r}; there are: {', '.join(table)}")
    source, folder = table[name], Path(out)
    if is_complete(folder, resume=resume, overwrite=overwrite):
        log(f"{folder} is complete already")
        return folder
    log(f"{name}: licence: {source.licence}")
    log(f"{name}: please cite {source.citation}")
    parts = folder.with_name(folder.name + ".download")
    if parts.exists() and not resume:
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    files = [_fetch_checked(address, md5_address, parts, log) for address, md5_address in source.files.items()]
    with new_folder(folder) as fresh:
        report = _fill(name, source, files, fresh, log)
        about = f"Licence: {source.licence}.\nCite: {source.citation}.\nFrom: {', '.join(source.files)}"
        write_readme(fresh, [name, about], report)
    shutil.rmtree(parts)
    for note in report.notes:
        log(note)
    return folder


def _fill(name: str, source: Source, files: list[Path], folder: Path, log: Log) -> Report:
    """Convert the files into the folder, and return the report.

    Files that cannot be read are removed, so that `resume` fetches them again.
    """
    try:
        return fill_folder(source.importer, files, folder, dataset_name=name, log=log)
    except UserError as error:
        for file in files:
            file.unlink()
        raise UserError(f"the files from {', '.join(source.files)} cannot be read: {error}") from None


def _fetch_checked(address: str, md5_address: str | None, parts: Path, log: Log) -> Path:
    """Download a file into the folder `parts` unless it is there, and check its MD5 if one is published."""
    file = parts / address.rsplit("/", 1)[1]
    if not file.exists():
        _fetch(address, file, log)
    if md5_address is not None:
        md5_file = parts / (file.name + ".md5")
        if not md5_file.exists():
            _fetch(md5_address, md5_file, log)
        expected = published_md5(md5_file.read_text(encoding="utf-8", errors="replace"))
        actual = md5(file)
        if expected is None or actual != expected:
            file.unlink()
            md5_file.unlink()
            raise UserError(f"{address}: its MD5 is {actual}, published is {expected}; it was removed, try again")
    return file


def _fetch(address: str, file: Path, log: Log) -> None:
    """Download to `file`, continuing where an earlier attempt ended; the file appears only when it is complete."""
    part = file.with_name(file.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_rest(address, part, log)
            part.rename(file)
            _version(part).unlink(missing_ok=True)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is longer than the file, so it is of another file: start again
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise UserError(f"{address}: the server answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = str(getattr(error, "reason", error))
        if attempt < ATTEMPTS:
            log(f"{file.name}: {reason}; trying again ({attempt} of {ATTEMPTS - 1})")
            time.sleep(min(8.0, 0.25 * 2**attempt))
    raise UserError(f"{address} cannot be fetched ({reason}); try again later with --resume")


def _version(part: Path) -> Path:
    """Return the path of the file that stores the ETag of the file that a part belongs to."""
    return part.with_name(part.name + ".etag")


def _fetch_rest(address: str, part: Path, log: Log) -> None:
    """Append the bytes that a partly downloaded file lacks; raise OSError if the connection ends early."""
    num_bytes = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "nextitem"}
    if num_bytes:
        headers["Range"] = f"bytes={num_bytes}-"
        if _version(part).exists():  # the server sends the whole file if it is no longer the one that we started with
            headers["If-Range"] = _version(part).read_text(encoding="latin-1")
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        is_continued = answer.status == 206
        if is_continued and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {num_bytes}-"):
            part.unlink()
            raise OSError(f"the server sent another range than the one from byte {num_bytes:,}")
        num_bytes = num_bytes if is_continued else 0
        etag = answer.headers.get("ETag") or ""
        if not is_continued:
            _version(part).unlink(missing_ok=True)
            if etag.startswith('"'):  # a weak one (W/) does not promise the same bytes
                _version(part).write_text(etag, encoding="latin-1")
        length = answer.headers.get("Content-Length")
        total = None if length is None else num_bytes + int(length)
        last_report = time.monotonic()
        with part.open("ab" if is_continued else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                num_bytes += len(chunk)
                if time.monotonic() - last_report > 5:
                    share = f" of {total / 1e6:.0f}" if total else ""
                    log(f"{part.stem}: {num_bytes / 1e6:.0f}{share} MB")
                    last_report = time.monotonic()
    if total is not None and num_bytes != total:
        raise OSError(f"the connection ended after {num_bytes:,} of {total:,} bytes")
