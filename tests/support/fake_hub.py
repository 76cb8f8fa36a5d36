"""A local server with the parts of the Hugging Face hub's HTTP API that a push and a pull of a model use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test_token_of_nobody"


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory: name -> file name -> content; requests must carry TOKEN.

    `lfs` are names of files that are listed with a sha256; others have the hash of git.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.is_private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.wrong_sizes: dict[str, int] = {}
        self.wrong_content: dict[str, bytes] = {}
        self.lfs: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def listing(self, repo: str) -> list[dict[str, Any]]:
        entries = []
        for name, content in self.repos[repo].items():
            entry = {"rfilename": name, "size": self.wrong_sizes.get(name, len(content)), "blobId": blob_id(content)}
            if name in self.lfs:
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing of a request."""

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _is_refused(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        self._send(401)
        return True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_refused():
            return
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            values = json.loads(body)
            repo = f"{values.get('organization') or 'me'}/{values['name']}"
            self.server.repos.setdefault(repo, {})
            self.server.is_private[repo] = values.get("private", values.get("visibility") == "private")
            self._json({"url": f"{self.server.address}/{repo}"})
        elif parts[:2] == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._json({"files": files})
        else:
            assert parts[4] == "commit"
            repo = "/".join(parts[2:4])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.server.messages.append(line["value"]["summary"])
                else:
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repos[repo][line["value"]["path"]] = content
            self._json({"success": True, "commitUrl": f"{self.server.address}/{repo}/commit/{SHA}", "commitOid": SHA})

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if self._is_refused():
            return
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            if repo not in self.server.repos:
                self._send(404, X_Error_Code="RepoNotFound")
                return
            self._json({"id": repo, "sha": SHA, "siblings": self.server.listing(repo), "private": True, "tags": []})
            return
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        content = self.server.repos.get(repo, {}).get(name)
        if content is None:
            self._send(404, X_Error_Code="EntryNotFound")
            return
        content = self.server.wrong_content.get(name, content)
        self._send(200, content, ETag=f'"{blob_id(content)}"', X_Repo_Commit=SHA)

    def do_HEAD(self) -> None:
        self.do_GET()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a hub in a thread."""
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
