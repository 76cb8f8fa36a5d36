"""Public data sets from their official addresses, as dataset folders.

Downloads resume, are checked if a checksum is published, and leave nothing half-made: the folder appears when
everything in it is right. What becomes of the files is written once, in data/importers: `nextitem import` does the same
to files that are there already.
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

Say = Callable[[str], None]

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 5  # of a connection that breaks; each goes on where the former ended


@dataclass(frozen=True)
class Source:
    """A public data set: what to fetch, what it may be used for, and how it becomes a dataset folder.

    files     address -> address of its published MD5, or None
    importer  name of the importer (importers.names) that reads the files
    """

    files: dict[str, str | None]
    licence: str
    citation: str
    importer: str


def _movielens(name: str) -> Source:
    address = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    return Source(
        {address: f"{address}.md5"},
        "for research; no redistribution without permission, no commercial use without permission of GroupLens",
        "Harper, Konstan: The MovieLens Datasets. ACM TiiS 5(4), 2015",
        name,
    )


def _amazon(category: str) -> Source:
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
    say: Say = lambda text: None,
    sources: dict[str, Source] | None = None,
) -> Path:
    """Fetch data set `name`, write it as the dataset folder `out`, and return that.

    Files being fetched lie in `<out>.download` until all is done; `resume` goes on with what lies there. UserError if
    the name is unknown, `out` stands, an address cannot be reached, or a file is not what was published.
    """
    table = DATASETS if sources is None else sources
    if name not in table:
        raise UserError(f"no data set is called {name!r}; there are: {', '.join(table)}")
    source, folder = table[name], Path(out)
    if is_complete(folder, resume=resume, overwrite=overwrite):
        say(f"{folder} is complete already")
        return folder
    say(f"{name}: licence: {source.licence}")
    say(f"{name}: please cite {source.citation}")
    parts = folder.with_name(folder.name + ".download")
    if parts.exists() and not resume:
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    files = [_fetch_checked(address, md5_address, parts, say) for address, md5_address in source.files.items()]
    with new_folder(folder) as fresh:
        report = _filled(name, source, files, fresh, say)
        about = f"Licence: {source.licence}.\nCite: {source.citation}.\nFrom: {', '.join(source.files)}"
        write_readme(fresh, [name, about], report)
    shutil.rmtree(parts)
    for note in report.notes:
        say(note)
    return folder


def _filled(name: str, source: Source, files: list[Path], folder: Path, say: Say) -> Report:
    """Fill the folder; files that cannot be read are removed, so that `resume` fetches them anew."""
    try:
        return fill_folder(source.importer, files, folder, dataset_name=name, say=say)
    except UserError as error:
        for file in files:
            file.unlink()
        raise UserError(f"what came from {', '.join(source.files)} cannot be read: {error}") from None


def _fetch_checked(address: str, md5_address: str | None, parts: Path, say: Say) -> Path:
    file = parts / address.rsplit("/", 1)[1]
    if not file.exists():
        _fetch(address, file, say)
    if md5_address is not None:
        listed = parts / (file.name + ".md5")
        if not listed.exists():
            _fetch(md5_address, listed, say)
        expected = published_md5(listed.read_text(encoding="utf-8", errors="replace"))
        actual = md5(file)
        if expected is None or actual != expected:
            file.unlink()
            listed.unlink()
            raise UserError(f"{address}: its MD5 is {actual}, published is {expected}; it was removed, try again")
    return file


def _fetch(address: str, file: Path, say: Say) -> None:
    """Downloads to `file`, beginning where an earlier attempt ended; the name appears when it is whole."""
    part = file.with_name(file.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_rest(address, part, say)
            part.rename(file)
            _version(part).unlink(missing_ok=True)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what lies here is longer than the file: not ours, begin again
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise UserError(f"{address}: the server answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = str(getattr(error, "reason", error))
        if attempt < ATTEMPTS:
            say(f"{file.name}: {reason}; trying again ({attempt} of {ATTEMPTS - 1})")
            time.sleep(min(8.0, 0.25 * 2**attempt))
    raise UserError(f"{address} cannot be fetched ({reason}); try again later with --resume")


def _version(part: Path) -> Path:
    """Where the ETag of the file that a part belongs to is kept."""
    return part.with_name(part.name + ".etag")


def _fetch_rest(address: str, part: Path, say: Say) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "nextitem"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _version(part).exists():  # the server sends the whole file where it is no longer the one we began with
            headers["If-Range"] = _version(part).read_text(encoding="latin-1")
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        continued = answer.status == 206
        if continued and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            part.unlink()
            raise OSError(f"the server sent another range than the one from byte {have:,} on")
        have = have if continued else 0
        etag = answer.headers.get("ETag") or ""
        if not continued:
            _version(part).unlink(missing_ok=True)
            if etag.startswith('"'):  # a weak one (W/) does not promise the same bytes
                _version(part).write_text(etag, encoding="latin-1")
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        told = time.monotonic()
        with part.open("ab" if continued else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if time.monotonic() - told > 5:
                    share = f" of {total / 1e6:.0f}" if total else ""
                    say(f"{part.stem}: {have / 1e6:.0f}{share} MB")
                    told = time.monotonic()
    if total is not None and have != total:
        raise OSError(f"the connection ended after {have:,} of {total:,} bytes")
