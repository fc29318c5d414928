"""A hub of repositories in memory, behind the addresses that huggingface_hub asks; for tests."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


class FakeHub:
    """Repositories: "org/name" → {revision: {file: bytes}}; and what was asked.

    gated: the names of repositories whose files are refused.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []
        self.url = ""

    def add(self, name: str, files: dict[str, bytes], revision: str = "main") -> None:
        self.repositories.setdefault(name, {})[revision] = files

    def commit(self, name: str, revision: str) -> str:
        if revision in self.repositories[name]:
            return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()
        return revision

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        by_revision = self.repositories[name]
        of_commit = {self.commit(name, known): known for known in by_revision}
        return by_revision.get(of_commit.get(revision, revision))


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Serve a FakeHub on this machine while the context lasts."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            path = [unquote(piece) for piece in urlparse(self.path).path.strip("/").split("/")]
            if path[:2] == ["api", "models"]:
                self.api("/".join(path[2:4]), path[4:])
            elif len(path) > 4 and path[2] == "resolve":
                self.file("/".join(path[:2]), path[3], "/".join(path[4:]))
            else:
                self.fail(404, "EntryNotFound")

        def api(self, name: str, rest: list[str]) -> None:
            revision = rest[1] if len(rest) > 1 else "main"
            if name not in hub.repositories:
                self.fail(404, "RepoNotFound")
                return
            files = hub.files(name, revision)
            if files is None:
                self.fail(404, "RevisionNotFound")
                return
            listed = [
                {"type": "file", "path": f, "oid": "0", "size": len(x)} for f, x in files.items()
            ]
            if rest[:1] == ["tree"]:
                self.send(json.dumps(listed).encode(), {})
                return
            about = {
                "id": name,
                "sha": hub.commit(name, revision),
                "siblings": [{"rfilename": file} for file in files],
            }
            self.send(json.dumps(about).encode(), {"Content-Type": "application/json"})

        def file(self, name: str, revision: str, file: str) -> None:
            if name in hub.gated:
                self.fail(403, "GatedRepo")
                return
            files = hub.files(name, revision) or {}
            if file not in files:
                self.fail(404, "EntryNotFound")
                return
            if self.command == "GET":
                hub.fetched.append(file)
            data = files[file]
            etag = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": hub.commit(name, revision)}
            self.send(data, headers)

        def send(self, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
