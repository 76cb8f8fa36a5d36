"""Downloads from a server on loopback: complete, resumed after a broken connection, checksums, refusals."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nextitem.core.errors import UserError
from nextitem.data import download
from nextitem.data.download import DATASETS, Source
from nextitem.data.importers.names import DATASETS as IMPORTERS
from nextitem.data.readers import load_dataset


class Server:
    """Server of bytes by path; it can truncate a first answer, and can ignore Range."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_first: set[str] = set()
        self.accepts_ranges = True
        self.shift = 0  # number of bytes by which an answer to Range begins too early
        self.nonsense: set[str] = set()  # paths whose first answer is not HTTP
        self.requests: list[tuple[str, str | None]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        byte_range = request.headers.get("Range")
        self.requests.append((request.path, byte_range))
        if request.path not in self.files:
            request.send_error(404)
            return
        body = self.files[request.path]
        if request.path in self.nonsense:
            self.nonsense.remove(request.path)
            request.wfile.write(b"what?\r\n\r\n")
            return
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        is_same = request.headers.get("If-Range") in (None, tag)
        start = (
            int(byte_range.removeprefix("bytes=").rstrip("-")) if byte_range and self.accepts_ranges and is_same else 0
        )
        start = max(0, start - self.shift)
        if start >= len(body) > 0:
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body) - start))
        request.send_header("ETag", tag)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.end_headers()
        part = body[start:]
        if request.path in self.cut_first:
            self.cut_first.remove(request.path)
            request.wfile.write(part[: len(part) // 2])
            request.wfile.flush()
            request.close_connection = True
            return
        request.wfile.write(part)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    running = Server()
    yield running
    running.http.shutdown()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


ML_1M = zip_bytes(
    {
        "ml-1m/ratings.dat": b"1::10::5::978300760\n1::20::3::978302109\n2::20::4::978300000\n2::10::1::978400000\n",
        "ml-1m/movies.dat": "10::Léon (1994)::Action|Drama\n20::Toy Story (1995)::Animation\n".encode("latin-1"),
        "ml-1m/users.dat": b"1::F::1::10::48067\n2::M::56::16::70072\n",
    }
)


def sources(server: Server, *, md5: bool = True) -> dict[str, Source]:
    server.files["/ml-1m.zip"] = ML_1M
    server.files["/ml-1m.zip.md5"] = f"MD5 (ml-1m.zip) = {hashlib.md5(ML_1M).hexdigest()}\n".encode()
    md5_address = f"{server.address}/ml-1m.zip.md5" if md5 else None
    files = {f"{server.address}/ml-1m.zip": md5_address}
    return {"ml-1m": Source(files, "for tests", "nobody", "ml-1m")}


def test_a_download_becomes_a_dataset_folder(server: Server, tmp_path: Path) -> None:
    messages: list[str] = []
    folder = download.download("ml-1m", tmp_path / "ml", sources=sources(server), log=messages.append)
    dataset = load_dataset(folder)
    assert (dataset.name, dataset.catalog.num_items, len(dataset.interactions), dataset.repeats) == (
        "ml-1m",
        2,
        4,
        False,
    )
    assert dataset.catalog.titles().to_list() == ["Léon (1994)", "Toy Story (1995)"]
    assert dataset.catalog.text is not None
    assert dataset.catalog.text[0] == "Léon (1994). Action, Drama"
    assert any("licence: for tests" in line for line in messages)
    assert not (tmp_path / "ml.download").exists()


@pytest.mark.parametrize("accepts_ranges", [True, False])
def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path, accepts_ranges: bool) -> None:
    table = sources(server)
    server.cut_first.add("/ml-1m.zip")
    server.accepts_ranges = accepts_ranges
    folder = download.download("ml-1m", tmp_path / "ml", sources=table)
    assert len(load_dataset(folder).interactions) == 4
    half = len(ML_1M) // 2
    assert ("/ml-1m.zip", f"bytes={half}-") in server.requests


def test_resume_continues_with_the_files_of_an_earlier_call(server: Server, tmp_path: Path) -> None:
    table = sources(server)
    parts = tmp_path / "ml.download"
    parts.mkdir()
    (parts / "ml-1m.zip.part").write_bytes(ML_1M[:100])
    download.download("ml-1m", tmp_path / "ml", sources=table, resume=True)
    assert server.requests[0] == ("/ml-1m.zip", "bytes=100-")
    num_requests = len(server.requests)
    download.download("ml-1m", tmp_path / "ml", sources=table, resume=True)
    assert len(server.requests) == num_requests


def test_a_file_that_has_changed_meanwhile_is_fetched_from_the_start(server: Server, tmp_path: Path) -> None:
    table = sources(server, md5=False)
    parts = tmp_path / "ml.download"
    parts.mkdir()
    (parts / "ml-1m.zip.part").write_bytes(b"of an older file")
    (parts / "ml-1m.zip.part.etag").write_text('"older"')
    folder = download.download("ml-1m", tmp_path / "ml", sources=table, resume=True)
    assert server.requests == [("/ml-1m.zip", "bytes=16-")]
    assert len(load_dataset(folder).interactions) == 4


def test_a_range_that_was_not_requested_is_not_appended(server: Server, tmp_path: Path) -> None:
    table = sources(server, md5=False)
    server.cut_first.add("/ml-1m.zip")
    server.shift = 1
    folder = download.download("ml-1m", tmp_path / "ml", sources=table)
    assert len(load_dataset(folder).interactions) == 4
    assert [requested_range for _, requested_range in server.requests] == [None, f"bytes={len(ML_1M) // 2}-", None]


def test_a_request_is_repeated_if_the_answer_is_not_http(server: Server, tmp_path: Path) -> None:
    table = sources(server)
    server.nonsense.add("/ml-1m.zip")
    assert len(load_dataset(download.download("ml-1m", tmp_path / "ml", sources=table)).interactions) == 4


@pytest.mark.parametrize("body", [b"<html>closed for repairs</html>", ML_1M[:80] + b"?" + ML_1M[81:]])
def test_a_damaged_archive_is_named_and_fetched_again(server: Server, tmp_path: Path, body: bytes) -> None:
    table = sources(server, md5=False)
    server.files["/ml-1m.zip"] = body
    with pytest.raises(UserError, match=r"ml-1m\.zip cannot be read"):
        download.download("ml-1m", tmp_path / "ml", sources=table)
    assert not (tmp_path / "ml").exists()
    server.files["/ml-1m.zip"] = ML_1M
    assert len(load_dataset(download.download("ml-1m", tmp_path / "ml", sources=table, resume=True)).interactions) == 4


def test_a_file_with_a_wrong_checksum_is_removed(server: Server, tmp_path: Path) -> None:
    table = sources(server)
    server.files["/ml-1m.zip"] = ML_1M + b"x"
    with pytest.raises(UserError, match="MD5"):
        download.download("ml-1m", tmp_path / "ml", sources=table)
    assert not (tmp_path / "ml").exists()
    server.files["/ml-1m.zip"] = ML_1M
    assert len(load_dataset(download.download("ml-1m", tmp_path / "ml", sources=table, resume=True)).interactions) == 4


def test_wrong_names_folders_and_addresses_are_refused(server: Server, tmp_path: Path) -> None:
    table = sources(server)
    with pytest.raises(UserError, match=r"no data set is called 'ml-2m'; there are: ml-1m"):
        download.download("ml-2m", tmp_path / "ml", sources=table)
    del server.files["/ml-1m.zip"]
    with pytest.raises(UserError, match="404"):
        download.download("ml-1m", tmp_path / "ml", sources=table)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        download.download("ml-1m", tmp_path / "file", sources=table, overwrite=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("x")
    with pytest.raises(UserError, match="--overwrite"):
        download.download("ml-1m", tmp_path / "full", sources=table)
    with pytest.raises(UserError, match="something else"):
        download.download("ml-1m", tmp_path / "full", sources=table, overwrite=True)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError, match="--resume"):
        download.download("ml-1m", tmp_path / "gone", sources=table)


def test_every_source_has_a_licence_and_https_addresses() -> None:
    for name, source in DATASETS.items():
        assert source.licence, name
        assert source.citation, name
        assert all(address.startswith("https://") for address in source.files), name
        assert source.importer in IMPORTERS, name
