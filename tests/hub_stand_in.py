"""A stand-in for the Hugging Face Hub on this machine: repositories, commits with large files, and downloads."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_secret"
"""The only token that the hub accepts."""


@dataclass
class Repository:
    """A repository with one branch."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        """Identifier of the newest commit."""
        return hashlib.sha1(str(len(self.messages)).encode()).hexdigest()


@dataclass
class Hub:
    """The state of a hub."""

    owner: str = "me"
    """the only owner that the token may write to"""
    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """large files by their SHA-256"""
    broken: int = 0
    """status that every request is answered with, if it is not 0"""

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Return the status, the content (bytes, or an object for JSON) and the headers of an answer."""
        if self.broken:
            return self.broken, {"error": "it is broken"}, {}
        if method == "PUT":
            oid = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            self.large[oid] = body
            return 200, {}, {}
        if token not in (None, f"Bearer {TOKEN}"):
            return 401, {"error": "Invalid credentials in Authorization header"}, {}
        if path == "/api/whoami-v2":
            return 200, {"name": self.owner, "type": "user"}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/.]+)(?:\.git)?(/.*)?", path)
        assert found, path
        repository, action = self.repositories.get(found[1]), found[2] or ""
        if repository is None or (repository.private and token is None):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        return self.act(found[1], repository, action, body)

    def create(self, wanted: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        """Create a repository."""
        owner, name = wanted.get("organization") or self.owner, wanted["name"].rpartition("/")[2]
        if owner != self.owner:
            return 403, {"error": f"You don't have the rights to create a model under the namespace {owner}"}, {}
        address = {"url": f"{self.address}/{owner}/{name}", "id": f"{owner}/{name}"}
        if f"{owner}/{name}" in self.repositories:
            return 409, address, {}
        is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))  # older clients
        self.repositories[f"{owner}/{name}"] = Repository(is_private, {".gitattributes": b""})
        return 200, address, {}

    def act(self, name: str, repository: Repository, action: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Answer a request to an existing repository."""
        files = repository.files
        if action in ("", "/revision/main"):
            told = {"id": name, "modelId": name, "private": repository.private, "sha": repository.commit, "tags": []}
            return 200, {**told, "siblings": [{"rfilename": file} for file in files]}, {}
        if action.startswith("/tree/"):
            return 200, [{"type": "file", "path": f, "size": len(c), "oid": f} for f, c in files.items()], {}
        if action == "/preupload/main":
            modes = {True: "lfs", False: "regular"}
            asked = [file["path"] for file in json.loads(body)["files"]]
            told = [{"path": f, "uploadMode": modes[f.endswith(".safetensors")], "shouldIgnore": False} for f in asked]
            return 200, {"files": told}, {}
        if action == "/info/lfs/objects/batch":
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.address}/large/{wanted['oid']}", "header": {}}}}
                for wanted in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}, {}
        if action == "/commit/main":
            for line in map(json.loads, body.splitlines()):
                self.change(repository, line["key"], line["value"])
            told = {"success": True, "commitOid": repository.commit, "commitUrl": f"{self.address}/{name}/commit/x"}
            return 200, told, {}
        file = action.split("/", 3)[3]
        assert action.startswith("/resolve/")
        etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
        return 200, files[file], {"ETag": etag, "X-Repo-Commit": repository.commit}

    def change(self, repository: Repository, key: str, value: dict[str, Any]) -> None:
        """Apply one line of a commit."""
        match key:
            case "header":
                repository.messages.append(value["summary"])
            case "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                repository.files[value["path"]] = self.large[value["oid"]]
            case "deletedFile":
                del repository.files[value["path"]]


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """Run a hub on this machine until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            path = self.path.partition("?")[0]
            status, content, headers = hub.answer(self.command, path, self.headers["Authorization"], body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True  # the client keeps connections open
        hub.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            http.shutdown()
            thread.join()
