"""A hub on the loopback interface: the part of the HTTP API that downloading a model uses.

GET       /api/models/{id}/revision/{revision}       the commit behind a name
GET       /api/models/{id}/tree/{revision}           the files of a commit
HEAD, GET /{id}/resolve/{revision}/{file}            one file, with ETag, X-Repo-Commit and Range
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_sesame"


@dataclass
class Repository:
    """A repository and the ways in which it misbehaves."""

    commits: dict[str, Path]
    names: dict[str, str]
    private: bool = False
    gated: bool = False
    status: int | None = None
    """Answer everything with this status."""
    drop_after: list[int] = field(default_factory=list)
    """Cut the connection after so many bytes of the n-th safetensors body; the last entry 0 stands for all further."""
    spoil: Callable[[bytes], bytes] = bytes
    """What becomes of a safetensors body on its way."""


def commit(folder: Path) -> str:
    """A sha for the content of a folder, as long as a git one."""
    digest = hashlib.sha1()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()


class HubServer(ThreadingHTTPServer):
    """Repositories by id, every request line that came in, and every Range that was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo_id: str, folder: Path, *, tags: dict[str, Path] | None = None, **traits: Any) -> Repository:
        """Serve a folder as branch main, and others as tags."""
        folders = {"main": folder, **(tags or {})}
        names = {name: commit(path) for name, path in folders.items()}
        commits = {names[name]: path for name, path in folders.items()}
        self.repositories[repo_id] = Repository(commits, names, **traits)
        return self.repositories[repo_id]

    def files_asked_for(self, repo_id: str, method: str = "GET") -> list[str]:
        """The files of a repository whose bodies were requested, in order."""
        start = f"{method} /{repo_id}/resolve/"
        return [line.removeprefix(start).split("/", 1)[1] for line in self.requests if line.startswith(start)]


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        try:
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
                repository = self._repository(match[1])
                sha, folder = self._commit(repository, match[3])
                files = sorted(file for file in folder.rglob("*") if file.is_file())
                if match[2] == "tree":
                    self._send_json([_entry(file, folder) for file in files])
                else:
                    siblings = [{"rfilename": str(file.relative_to(folder))} for file in files]
                    self._send_json({"id": match[1], "sha": sha, "siblings": siblings, "tags": [], "private": False})
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                repository = self._repository(match[1])
                if repository.gated:
                    raise _Refused(403, "GatedRepo", "Access is restricted and you are not in the authorized list.")
                sha, folder = self._commit(repository, match[2])
                if not (folder / match[3]).is_file():
                    raise _Refused(404, "EntryNotFound", "Entry not found")
                self._send_file(repository, sha, folder / match[3])
            else:
                raise _Refused(404)
        except _Refused as refused:
            self._send(refused.status, b"{}", {"X-Error-Code": refused.code, "X-Error-Message": refused.message})

    def _repository(self, repo_id: str) -> Repository:
        repository = self.server.repositories.get(repo_id)
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {TOKEN}"):
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.private and authorization is None):
            # Without a token the real hub does not tell a private repository from one that does not exist.
            raise _Refused(404 if authorization else 401, "RepoNotFound", "Repository not found")
        if repository.status is not None:
            raise _Refused(repository.status)
        return repository

    def _commit(self, repository: Repository, revision: str) -> tuple[str, Path]:
        sha = repository.names.get(revision, revision)
        if sha not in repository.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repository.commits[sha]

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, repository: Repository, sha: str, file: Path) -> None:
        body = file.read_bytes()
        etag = _etag(file)
        is_weights = file.suffix == ".safetensors"
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            self._send(200, body, headers)
            return
        if is_weights:
            body = repository.spoil(body)
        status, size = 200, len(body)
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            self.server.ranges.append(match[0])
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            body = body[start:]
        cut = None
        if is_weights and repository.drop_after:
            cut = repository.drop_after[0]
            if len(repository.drop_after) > 1 or cut:
                repository.drop_after.pop(0)
        self._send(status, body, headers, cut)

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


def _etag(file: Path) -> str:
    """sha256 of large files (those the hub keeps in LFS), the git blob id of the others."""
    body = file.read_bytes()
    if file.suffix in (".safetensors", ".bin"):
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _entry(file: Path, folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size}
    if file.suffix in (".safetensors", ".bin"):
        lfs = {"oid": _etag(file), "size": file.stat().st_size, "pointerSize": 134}
        return entry | {"oid": hashlib.sha1(_etag(file).encode()).hexdigest(), "lfs": lfs}
    return entry | {"oid": _etag(file)}
