"""As much of a wandb server as `wandb sync` asks for, on the loopback: it takes and remembers."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = {
    "id": "B", "displayName": "x", "description": "", "config": "{}", "sweepName": None,
    "historyLineCount": 0, "project": {"id": "P", "name": "cutbit", "entity": {"name": "me"}},
}  # fmt: skip


@dataclass
class Server:
    """Where it listens, and what it was sent: rows of history and the inputs of artifacts."""

    url: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Take a request, and return what a server would say to it."""
        content = json.loads(body) if body[:1] == b"{" else {}
        if path.endswith("/file_stream"):
            for line in content.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
                self.history.append(json.loads(line))
        if path != "/graphql":
            return {}
        asked, given = content.get("operationName"), content.get("variables", {})
        found: dict[str, Any] = {}
        if asked == "UpsertBucket":
            bucket = {**BUCKET, "name": given.get("name")}
            found = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        elif asked == "CreateArtifact":
            self.artifacts.append(given["input"])
            artifact = {"id": "A", "state": "COMMITTED", "artifactSequence": {"id": "S"}}
            found = {"createArtifact": {"artifact": artifact}}
        elif asked == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/up"} for name in given["files"]]
            found = {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        return {"data": found}


@contextmanager
def serving() -> Iterator[Server]:
    """Run one on a free port of this machine."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            said = json.dumps(server.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_PUT = do_POST  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.handle_error = lambda *arguments: None  # type: ignore[method-assign]
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
