"""As much of a wandb server as its client asks for, on the loopback: it takes and remembers."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "E", "name": "me"}


@dataclass
class ServedRun:
    """A run as the server has it: rows by their place, as the client says it."""

    id: str
    given: dict[str, Any] = field(default_factory=dict)  # of UpsertBucket, the last that was said
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    console: list[str] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Its rows in their order."""
        return [self.rows[place] for place in sorted(self.rows)]

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration."""
        found = json.loads(self.given.get("config") or "{}")
        return {key: one["value"] for key, one in found.items()}

    def bucket(self) -> dict[str, Any]:
        """What the client is told of it."""
        return {
            "id": f"B{self.id}", "name": self.id, "displayName": self.given.get("displayName"),
            "description": "", "config": self.given.get("config") or "{}", "sweepName": None,
            "tags": self.given.get("tags") or [], "notes": self.given.get("notes"),
            "historyLineCount": len(self.rows), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in self.history[-1:]]),
            "eventsTail": "[]", "summaryMetrics": json.dumps(self.summary),
            "wandbConfig": '{"t": 1}',
            "project": {"id": "P", "name": self.given.get("project"), "entity": ENTITY},
        }  # fmt: skip


@dataclass
class Server:
    """Where it listens, and what it was sent.

    Attributes:
        url: of it.
        runs: by their ids.
        artifacts: inputs of CreateArtifact, in their order.
        used: ids of runs and artifacts that they use.
        refuses: how many requests are still answered with an error, as by a server that is down.
    """

    url: str = ""
    runs: dict[str, ServedRun] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[tuple[str, str], str] = field(default_factory=dict)  # their ids
    committed: list[str] = field(default_factory=list)  # those whose files are all here
    used: list[tuple[str, str]] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    projects: list[str] = field(default_factory=list)  # that are asked for by a dashboard
    views: list[dict[str, Any]] = field(default_factory=list)  # workspaces and reports
    keys: set[str] = field(default_factory=set)
    operations: list[str] = field(default_factory=list)
    refuses: int = 0
    fails: str = ""  # an operation that is answered with an error

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows of all runs."""
        return [row for run in self.runs.values() for row in run.history]

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Take a request, and return what a server would say to it."""
        content = json.loads(body) if body[:1] == b"{" and path != "/up" else {}
        if path.endswith("/file_stream"):
            self._stream(self._run(path.split("/")[-2]), content)
        elif path == "/up":
            self.uploads.append(body)
        if path != "/graphql":
            return {}
        named = re.search(r"(?:query|mutation) (\w+)", content.get("query", ""))
        asked, given = named[1] if named else "", content.get("variables") or {}
        self.operations.append(asked)
        if asked == self.fails:
            return {"errors": [{"message": "failed on purpose"}]}
        return {"data": self._find(asked, given)}

    def _run(self, run_id: str) -> ServedRun:
        return self.runs.setdefault(run_id, ServedRun(run_id))

    def _stream(self, run: ServedRun, content: dict[str, Any]) -> None:
        files = content.get("files") or {}
        rows = files.get("wandb-history.jsonl", {})
        for place, row in enumerate(rows.get("content", []), rows.get("offset", 0)):
            run.rows[place] = json.loads(row)
        for row in files.get("wandb-summary.json", {}).get("content", []):
            run.summary |= json.loads(row)
        run.console += files.get("output.log", {}).get("content", [])
        if content.get("complete"):
            run.exit_code = content.get("exitcode")

    def _find(self, asked: str, given: dict[str, Any]) -> dict[str, Any]:
        if asked == "Viewer":
            return {"viewer": {**ENTITY, "username": "me", "entity": "me", "flags": "{}",
                               "teams": {"edges": []}}}  # fmt: skip
        if asked == "RunResumeStatus":
            there = self.runs.get(given["name"])
            model = {"id": "P", "name": given["project"], "entity": ENTITY}
            return {"model": {**model, "bucket": there.bucket() if there else None}}
        if asked == "UpsertBucket":
            is_new = given["name"] not in self.runs
            run = self._run(given["name"])
            run.given |= {name: value for name, value in given.items() if value is not None}
            return {"upsertBucket": {"bucket": run.bucket(), "inserted": is_new}}
        if asked == "ArtifactType":  # of a collection, to refuse another
            return {"project": {"artifact": None}}
        if asked == "ProjectArtifacts":
            there = {key[1]: one in self.committed for key, one in self.versions.items()
                     if key[0] == given["collection"]}  # fmt: skip
            nodes = [{"digest": digest, "state": "COMMITTED" if is_whole else "PENDING"}
                     for digest, is_whole in there.items()]  # fmt: skip
            page = {"pageInfo": {"endCursor": None, "hasNextPage": False}}
            artifacts = {**page, "edges": [{"node": node} for node in nodes]}
            return {"project": {"artifactType": {"artifactCollection": {"artifacts": artifacts}}}}
        if asked == "GetDefaultEntity":
            return {"viewer": {"id": "E", "entity": "me"}}
        if asked == "CreateArtifact":
            self.artifacts.append(given["input"])
            named = (given["input"]["artifactCollectionName"], given["input"]["digest"])
            own = self.versions.setdefault(named, f"A{len(self.versions) + 1}")
            state = "COMMITTED" if own in self.committed else "PENDING"
            artifact = {"id": own, "state": state, "artifactSequence": {"id": "S"}}
            return {"createArtifact": {"artifact": artifact}}
        file = {"id": "F", "uploadUrl": f"{self.url}/up", "uploadHeaders": []}
        if asked in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            name = asked[0].lower() + asked[1:]
            return {name: {"artifactManifest": {"id": "M", "file": file}}}
        if asked == "CreateArtifactFiles":
            files = [{"node": {**file, "id": "F", "name": one["name"], "displayName": one["name"],
                               "artifact": {"id": one["artifactID"]}, "uploadMultipartUrls": None,
                               "storagePath": ""}}
                     for one in given.get("input", given)["artifactFiles"]]  # fmt: skip
            return {"createArtifactFiles": {"files": {"edges": files}}}
        if asked == "CommitArtifact":
            self.committed.append(given["artifactID"])
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "D"}}}
        if asked == "UseArtifact":
            one = given.get("input", given)
            self.used.append((one["runName"], one["artifactID"]))
            return {"useArtifact": {"artifact": {"id": one["artifactID"]}}}
        if asked == "NotifyScriptableRunAlert":
            self.alerts.append(given)
            return {"notifyScriptableRunAlert": {"success": True}}
        if asked == "GetProjects":
            projects = [
                {"__typename": "Project", "id": "P", "name": name, "entityName": given["entity"],
                 "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
                for name in self.projects
            ]  # fmt: skip
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": one} for one in projects]}}
        if asked in ("UpsertView2", "upsertView"):
            self.views.append(given)
            view = {
                "id": f"V{len(self.views)}", "name": given["name"], "displayName": "", "type": "",
                "description": "", "project": {"name": given["projectName"], "entityName": "me"},
                "spec": given["spec"], "updatedAt": None,
            }  # fmt: skip
            return {"upsertView": {"view": view, "inserted": True}}
        if asked == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/up"} for name in given["files"]]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        return {}


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
            is_refused = server.refuses > 0
            server.refuses -= is_refused
            said = b"" if is_refused else json.dumps(server.answer(self.path, body)).encode()
            self.send_response(400 if is_refused else 200)
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
