"""Upload runs to wandb: whole sweeps, again after a failure, from wherever they lie now.

python -m tracking.sync runs/<name>/<time>             a sweep, or one run
python -m tracking.sync runs/digits --project mine     all of a name

A run has one id, so that it is one run in wandb however often it is uploaded. What was uploaded and
has not changed since is left out, and of a run that the server has in part, perhaps from another
machine, what it has: `wandb sync` would append it once more, and give its alerts again. A sweep's
report is a run in the sweep's own folder, and goes up with the others. Artifacts are read from the
run's folder, also where that was moved or copied from another machine.
"""

import argparse
import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracking import wandb_names as names
from tracking.checksums import read_json
from tracking.collect import natural
from tracking.files import DamagedError
from tracking.text import line, tolerant
from tracking.wandb_file import packed, records
from tracking.wandb_settings import missing_key

NEAREST = 3  # parts of an old path under which a file is looked for in the run's folder
# Of the environment: what one run is, or is to be, has nothing to do with those that are uploaded.
_NOT_PASSED = ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_NAME", "WANDB_DIR", "WANDB_RUN_GROUP")


# As wandb's own client asks before it resumes a run, and for the versions of an artifact.
_RUN = """query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { historyTail logLineCount eventsLineCount }
  }
}"""
_VERSIONS = """query ProjectArtifacts(
  $entity: String!, $project: String!, $type: String!, $collection: String!, $cursor: String
) {
  project(entityName: $entity, name: $project) {
    artifactType(name: $type) {
      artifactCollection(name: $collection) {
        artifacts(after: $cursor, first: 100) {
          pageInfo { endCursor hasNextPage }
          edges { node { digest state } }
        }
      }
    }
  }
}"""


@dataclass(frozen=True)
class Seen:
    """What the server has of a run.

    Attributes:
        last_step: of its history; −1 where it has none.
        kinds: of records that it has, beside those of history.
    """

    last_step: int = -1
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Place:
    """Where a run is in wandb; None is the server's default."""

    run_id: str = ""
    project: str | None = None
    entity: str | None = None


@dataclass(frozen=True, order=True)
class Version:
    """An artifact of a run."""

    kind: str
    collection: str
    digest: str


class Remote:
    """What is asked of wandb's server.

    Raises:
        wandb.Error: it does not answer, or does not know the key.
    """

    def __init__(self) -> None:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        self._api = wandb.Api()

    def seen(self, place: Place) -> Seen:
        """What it has of a run."""
        given = {"name": place.run_id, "project": place.project, "entity": place.entity}
        bucket = (self._execute(_RUN, given).get("model") or {}).get("bucket")
        if bucket is None:
            return Seen()
        tail = json.loads(bucket.get("historyTail") or "[]")
        last = max((json.loads(row).get("_step", -1) for row in tail), default=-1)
        kinds = {"output", "output_raw"} if bucket.get("logLineCount") else set()
        kinds |= {"stats"} if bucket.get("eventsLineCount") else set()
        return Seen(last, frozenset(kinds))

    def digests(self, place: Place, kind: str, collection: str) -> set[str]:
        """Digests of the whole versions of an artifact."""
        given: dict[str, Any] = {
            "entity": place.entity or self._api.default_entity, "project": place.project,
            "type": kind, "collection": collection, "cursor": None,
        }  # fmt: skip
        found = set[str]()
        while True:
            level: Any = self._execute(_VERSIONS, given)
            for name in ("project", "artifactType", "artifactCollection", "artifacts"):
                level = (level or {}).get(name)
            if level is None:
                return found
            nodes = [edge["node"] for edge in level["edges"]]
            found |= {node["digest"] for node in nodes if node["state"] == "COMMITTED"}
            if not level["pageInfo"]["hasNextPage"]:
                return found
            given["cursor"] = level["pageInfo"]["endCursor"]

    def _execute(self, query: str, given: Mapping[str, Any]) -> dict[str, Any]:
        from wandb.errors import CommError
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError

        try:  # `Api.run` and `Api.artifact` ask for much more, and once for each
            found: dict[str, Any] | None = self._api._service_api.execute_graphql(query, given)
        except (WandbApiFailedError, TimeoutError) as error:
            raise CommError(str(error) or type(error).__name__) from error
        return found or {}


@dataclass
class Upload:
    """A file of wandb's, and what is to be uploaded in its place.

    Attributes:
        file: of the run.
        folder: the run's.
        place: what wandb is given: the file, or a copy whose artifacts are found.
        said: what is left out, in words.
        where: it is to be in wandb.
        artifacts: that it has.
    """

    file: Path
    folder: Path
    place: Path
    said: list[str] = field(default_factory=list)
    where: Place = Place()
    artifacts: list[Version] = field(default_factory=list)


def found(folders: Sequence[Path], is_online: bool = False) -> list[tuple[Path, Path]]:
    """Return the files of wandb's in or under folders, each with the run's folder, in job order.

    Args:
        folders: of runs, of sweeps, or above them.
        is_online: whether those of online runs are taken too.
    """
    kinds = ("offline-run-*", "run-*") if is_online else ("offline-run-*",)
    there = {}
    for root in folders:
        for folder in _runs(root.resolve()):
            for above in (folder, *_elsewhere(folder)):
                for kind in kinds:
                    for file in (above / "wandb").glob(f"{kind}/*.wandb"):
                        if above == folder or file.stem == f"run-{names.stored_id(folder)}":
                            there[file] = folder
    return sorted(there.items(), key=lambda pair: natural(str(pair[0])))


def _runs(root: Path) -> Iterator[Path]:
    """Folders in which wandb has left something."""
    for path, below, _ in os.walk(root):
        if "wandb" in below:
            yield Path(path)
        below[:] = [name for name in below if name not in ("wandb", ".hydra", "checkpoint")]


def _elsewhere(folder: Path) -> list[Path]:
    """Where WANDB_DIR had the run's files put."""
    with suppress(DamagedError):
        above = read_json(folder / names.IDENTITY).get("dir")
        return [Path(above)] if isinstance(above, str) else []
    return []


def is_uploaded(file: Path, host: str) -> bool:
    """Whether a file was uploaded to this server, and has not changed since."""
    mark = marker(file)
    if not mark.exists() or mark.stat().st_mtime_ns < file.stat().st_mtime_ns:
        return False
    return mark.read_text("utf-8", errors="replace").strip() in ("", host)  # wandb's own is empty


def marker(file: Path) -> Path:
    """What wandb puts beside a file that is uploaded."""
    return file.with_name(file.name + ".synced")


Ask = Callable[[Place], Seen]


def prepare(file: Path, folder: Path, aside: Path, ask: Ask, where: Place = Place()) -> Upload:
    """Return what to upload for a file: itself, or a copy in the folder ``aside``.

    Args:
        file: of wandb's.
        folder: the run's.
        aside: where a copy may be put.
        ask: says what the server has of a run.
        where: project and entity that take the place of the run's own.

    Raises:
        DamagedError: it is not what wandb wrote.
        OSError: it cannot be read, or the copy not be written.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    kept, said, artifacts = list[bytes](), list[str](), list[Version]()
    is_changed, seen, newest = False, Seen(), -1
    for content in records(file.read_bytes()):
        record = Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            project, entity = record.run.project or None, record.run.entity or None
            where = Place(record.run.run_id, where.project or project, where.entity or entity)
            seen = ask(where)
        if kind == "history":
            newest = record.history.step.num
        is_there = kind in ("history", "alert") and newest <= seen.last_step
        if (is_there and seen.last_step >= 0) or kind in seen.kinds:
            is_changed = True
            continue
        artifact = _artifact(record)
        if artifact is None:
            kept.append(content)
            continue
        missing = _find_files(artifact, folder)
        _drop_best(artifact, folder)
        if missing:
            said.append(f"{artifact.name}: {missing} is not there as it was; left out")
        else:
            artifacts.append(Version(artifact.type, artifact.name, artifact.digest))
            is_same = record == Record.FromString(content)
            kept.append(content if is_same else record.SerializeToString())
        is_changed |= bool(missing) or kept[-1] != content
    if not is_changed:
        return Upload(file, folder, file, said, where, artifacts)
    copy = Path(tempfile.mkdtemp(dir=aside)) / file.parent.name / file.name
    copy.parent.mkdir()
    copy.write_bytes(packed(kept))
    for other in file.parent.iterdir():
        if other.name not in (file.name, marker(file).name):
            (copy.parent / other.name).symlink_to(other)
    return Upload(file, folder, copy, said, where, artifacts)


def _artifact(record: Any) -> Any:
    """The artifact that a record logs, or None."""
    kind = record.WhichOneof("record_type")
    if kind == "artifact":
        return record.artifact
    if kind == "request" and record.request.HasField("log_artifact"):
        return record.request.log_artifact.artifact
    return None


def _find_files(artifact: Any, folder: Path) -> str:
    """Set where an artifact's files lie now; return the first that is nowhere, or nothing."""
    for entry in artifact.manifest.contents:
        if not entry.local_path:
            continue
        before = Path(entry.local_path)
        nearest = [folder.joinpath(*before.parts[-n:]) for n in range(1, NEAREST + 1)]
        there = next((path for path in [*nearest, before] if _is(path, entry.digest)), None)
        if there is None:
            return str(before)
        entry.local_path = str(there)
    return ""


def _is(path: Path, digest: str) -> bool:
    """Whether a file is there and has the digest that wandb gives it, MD5 to the base 64."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        own = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    return base64.b64encode(own).decode("ascii") == digest


def _drop_best(artifact: Any, folder: Path) -> None:
    """Take the alias away that a later run of the experiment has taken over."""
    if "best" not in artifact.aliases:
        return
    with suppress(DamagedError):
        accuracy = read_json(folder / "summary.json").get("final_accuracy")
        if not names.is_best(folder, accuracy, [*folder.parent.glob("*/summary.json")]):
            artifact.aliases.remove("best")


def upload(
    uploads: Sequence[Upload], host: str, remote: Remote, options: Sequence[str] = ()
) -> dict[Path, str]:
    """Upload, mark what has arrived, and return what has not and why, by the run's file.

    Args:
        uploads: as `prepare` returned them.
        host: wandb's server, which the marks name.
        remote: the same, to be asked.
        options: further ones of ``wandb sync``.
    """
    if not uploads:
        return {}
    began = {one.file: one.file.stat().st_mtime_ns for one in uploads}
    for one in uploads:
        marker(one.place).unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if k not in _NOT_PASSED}
    command = [sys.executable, "-m", "wandb", "sync", "--no-skip-online", "--no-skip-synced"]
    places = [str(one.place.parent) for one in uploads]
    subprocess.run([*command, *options, *places], env=environment, check=False)
    failed = {one.file: "not uploaded" for one in uploads if not marker(one.place).exists()}
    sent = [one for one in uploads if one.file not in failed]
    for one, missing in zip(sent, _not_arrived(sent, remote), strict=True):
        marker(one.file).unlink(missing_ok=True)
        if missing:  # which `wandb sync` says nothing of
            failed[one.file] = f"{', '.join(missing)} did not arrive"
            continue
        with suppress(OSError):  # a folder that cannot be written to is uploaded again next time
            marker(one.file).write_text(f"{host}\n", "utf-8")
            os.utime(marker(one.file), ns=(began[one.file],) * 2)
    return failed


def _not_arrived(sent: Sequence[Upload], remote: Remote) -> list[list[str]]:
    """Names of the artifacts of each upload that the server has not, as far as it says."""
    import wandb

    there: dict[tuple[Place, str, str], set[str] | None] = {}
    missing = list[list[str]]()
    for one in sent:
        missing.append([])
        for version in one.artifacts:
            place = Place("", one.where.project, one.where.entity)
            asked = (place, version.kind, version.collection)
            if asked not in there:
                try:
                    there[asked] = remote.digests(*asked)
                except wandb.Error as error:
                    there[asked] = None
                    one.said.append(f"whether {version.collection} arrived is not known: {error}")
            known = there[asked]
            if known is not None and version.digest not in known:
                missing[-1].append(version.collection)
    return missing


def main(arguments: Sequence[str]) -> int:
    """Upload the runs in or under the folders given."""
    parser = argparse.ArgumentParser(
        "python -m tracking.sync", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", nargs="+", type=Path, help="of a run, a sweep, or several")
    parser.add_argument("--project", help="another project than the runs'")
    parser.add_argument("--entity", help="another user or team than the runs'")
    parser.add_argument("--online", action="store_true", help="online runs that were cut off, too")
    parser.add_argument("--again", action="store_true", help="also what was uploaded before")
    given = parser.parse_args(arguments)
    for folder in given.folder:
        if not folder.is_dir():
            return _refused(f"{folder}: no such folder")
    files = found(given.folder, given.online)
    if not files:
        hint = "" if given.online else "; --online takes those of online runs"
        return _refused(f"{', '.join(map(str, given.folder))}: no runs of wandb there{hint}")
    host, reason = missing_key()
    left = [pair for pair in files if given.again or not is_uploaded(pair[0], host)]
    if not left:
        sys.stderr.write(f"all {len(files)} runs are uploaded; --again uploads them once more\n")
        return 0
    if reason is not None:
        why = reason or f"no key for {host}"
        return _refused(f"{why}; set WANDB_API_KEY or run wandb login")
    options = [f"--{name}={value}" for name in ("project", "entity")
               if (value := getattr(given, name))]  # fmt: skip
    import wandb

    wrong = list[str]()
    try:
        remote = Remote()
    except wandb.Error as error:
        return _refused(f"{host}: {error}")
    where = Place("", given.project, given.entity)
    with tempfile.TemporaryDirectory(prefix="cutbit-sync-") as aside:
        uploads = list(_prepared(left, Path(aside), remote.seen, where, wrong))
        failed = upload(uploads, host, remote, options)
    for one in uploads:
        for text in one.said:
            sys.stderr.write(line(f"{one.folder}: {text}") + "\n")
    wrong += [f"{one.folder}: {failed[one.file]}; the same command tries again"
              for one in uploads if one.file in failed]  # fmt: skip
    for text in wrong:
        sys.stderr.write(f"error: {line(text)}\n")
    done, before = len(uploads) - len(failed), len(files) - len(left)
    was = f", {before} were before" if before else ""
    sys.stderr.write(f"uploaded {done} of {len(left)} runs to {host}{was}\n")
    return 1 if wrong else 0


def _prepared(
    left: Sequence[tuple[Path, Path]], aside: Path, ask: Ask, where: Place, wrong: list[str]
) -> Iterator[Upload]:
    """Yield what can be uploaded; add to ``wrong`` what cannot."""
    import wandb

    for file, folder in left:
        try:
            yield prepare(file, folder, aside, ask, where)
        except DamagedError as error:
            wrong.append(f"{file}: {error}")
        except OSError as error:
            wrong.append(f"{file}: {error.strerror or error}")
        except wandb.Error as error:
            wrong.append(f"{file}: the server did not answer: {error}")


def _refused(text: str) -> int:
    sys.stderr.write(f"error: {line(text)}\n")
    return 1


if __name__ == "__main__":
    tolerant()
    sys.exit(main(sys.argv[1:]))
