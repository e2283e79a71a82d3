"""While a run works nobody else gets in, and when it has ended nothing of its Ray is left."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from conftest import ROOT, simulate

from app.engine import Simulator
from app.ray_session import (
    FOLDERS,
    MODE,
    NETWORK,
    TOKEN,
    TOKEN_PATH,
    Folder,
    answers,
    closed,
    sweep,
)

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc"),
]
START_S = 240.0  # many times what an idle machine needs
TRY = """
import ray
try:
    ray.init({address!r}, log_to_driver=False)
    print("IN", ray.get(ray.remote(lambda: "ran").remote()))
except ConnectionError:
    print("OUT")
"""


# A cluster's control service that asks for the token in argv or for none, and who joins it.
JOIN = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from app import ray_session

wanted, *tokens = sys.argv[1:]
names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")

class Service(grpc.GenericRpcHandler):
    def service(self, details):
        given = dict(details.invocation_metadata).get("authorization")
        def answer(request, context):
            if wanted and given != f"Bearer {wanted}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b"id"
        return grpc.unary_unary_rpc_method_handler(answer)

server = grpc.server(ThreadPoolExecutor(2), handlers=[Service()])
address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()
ray_session.services.canonicalize_bootstrap_address = lambda given: given
ray_session.ray.init = lambda **_: print(json.dumps([os.environ.get(name) for name in names]))
for token in tokens:
    os.environ.pop("RAY_AUTH_TOKEN", None)
    if token:
        os.environ["RAY_AUTH_TOKEN"] = token
    try:
        ray_session.start(None, address).close()
    except ValueError as error:
        print(str(error).replace(address, "HERE"))
    assert os.environ.get("RAY_AUTH_MODE") is None
"""


@dataclass(frozen=True)
class Listener:
    """A TCP socket that a process listens on."""

    command: str
    address: str
    port: int


class Run:
    """`python main.py` in a process of its own, whose clients wait in `tests.app.waiting`."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base, self.marks = folder / "run", base, folder
        command = [
            "main.py", "strategy=fedavg", "strategy._target_=tests.app.waiting.Waiting",
            "engine.workers=1", "engine.fork=false", "clients.total=2", "rounds=1",
            "data.max_train=40",
            "train.epochs=1", f"hydra.run.dir={self.folder}",
        ]  # fmt: skip
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env |= {"HOLD": str(folder), "RAY_TMPDIR": str(base)}
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def wait(self) -> None:
        """Until a client trains."""
        deadline = time.monotonic() + START_S
        while not (self.marks / "there").exists():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)

    def pids(self) -> list[int]:
        """The run's processes, Ray's among them."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    found += map(int, (thread / "children").read_text().split())
        return list(dict.fromkeys(found))

    def token(self) -> str:
        """What the workers know."""
        for pid in self.pids():
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(f"{TOKEN}=".encode()):
                    return entry.decode().partition("=")[2]
        raise AssertionError("no process knows a token")

    def listeners(self) -> list[Listener]:
        """All TCP sockets that the run's processes listen on."""
        open_sockets = {}
        for family in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    open_sockets[f"socket:[{fields[9]}]"] = (family, *fields[1].split(":"))
        found = set()
        for pid in self.pids():
            command = Path(f"/proc/{pid}/comm").read_text().strip()
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if (what := str(descriptor.readlink())) in open_sockets:
                        family, address, port = open_sockets[what]
                        found.add(Listener(command, _address(family, address), int(port, 16)))
        return sorted(found, key=lambda one: (one.command, one.port))


def _address(family: str, text: str) -> str:
    """An address as /proc/net writes it: words of four bytes, each backwards."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    return socket.inet_ntop(
        socket.AF_INET if family == "tcp" else socket.AF_INET6, b"".join(words)
    ).removeprefix("::ffff:")


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder with a name that is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="s-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


# One that each of Ray's servers has; others do not say whether they would have answered.
METHODS = (
    "NodeInfoGcsService/GetClusterId", "NodeManagerService/GetNodeStats",
    "ObjectManagerService/FreeObjects", "CoreWorkerService/GetCoreWorkerStats",
)  # fmt: skip


def answer(port: int, token: str | None) -> str:
    """What a server that speaks gRPC, or HTTP, answers to a call of its own."""
    address = f"127.0.0.1:{port}"
    headers = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=10, metadata=headers)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    continue
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    break
                return str(error.code().name)
            return "OK"
    url = f"http://{address}/get_or_create_runtime_env"
    try:
        request = urllib.request.Request(url, data=b"", headers=dict(headers))
        return str(urllib.request.urlopen(request, timeout=10).status)
    except urllib.error.HTTPError as error:
        return str(error.code)


def outer_address() -> str | None:
    """An address of this machine in its network, if it has one; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return None


def files_with(text: str, *folders: Path) -> list[Path]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "asks", [False, pytest.param(True, marks=pytest.mark.long)], ids=["sockets", "Ray itself"]
)
def test_a_stranger_is_refused_while_a_run_works(
    asks: bool, tmp_path: Path, base: Path, ray_simulator: Simulator
) -> None:
    """On every socket; and by Ray itself, whose tries take half a minute."""
    run = Run(tmp_path, base)
    try:
        run.wait()
        token, listeners = run.token(), run.listeners()
        # What listens does so on the loopback interface.
        assert {"gcs_server", "raylet"} <= {one.command for one in listeners}
        assert len(listeners) >= 6, listeners
        assert {one.address for one in listeners} == {"127.0.0.1"}, listeners
        # None of them answers without the token, or with another; with it they do.
        (gcs,) = (f"127.0.0.1:{one.port}" for one in listeners if one.command == "gcs_server")
        tokens = (None, 64 * "0", token)
        with ThreadPoolExecutor(8) as pool:  # some take seconds to say anything
            said = list(
                pool.map(lambda one: [answer(one.port, token) for token in tokens], listeners)
            )
        for one, (without, with_another, with_token) in zip(listeners, said, strict=True):
            assert {without, with_another} <= {"UNAUTHENTICATED", "401", "403"}, one
            assert with_token not in ("UNAUTHENTICATED", "401", "403"), one
        assert not answers(gcs)
        # Nor is there anything at the address that others see.
        if outer := outer_address():
            for one in listeners:
                with socket.socket() as probe:
                    assert probe.connect_ex((outer, one.port)) != 0, one
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {NETWORK: "0"}
        stranger = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", TRY.format(address=gcs)] if asks else ["true"],
            env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        # Meanwhile another run of this user's, on a Ray with another token.
        summary = simulate(tmp_path / "other", "engine=ray", "engine.workers=2",
                           simulator=ray_simulator)  # fmt: skip
        assert summary["num_failed"] == 0
        assert os.environ[MODE] == "token" and os.environ[TOKEN] != token
        assert stranger.communicate(timeout=120)[0] == ("OUT\n" if asks else "")
        # The token is on no command line and in no file; its folder is closed to others.
        for pid in run.pids():
            assert token.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        (folder,) = base.glob(f"{FOLDERS}*")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert files_with(token, folder, run.folder) == []
        assert sweep(base) == 0 and folder.exists()  # it is in use
        (tmp_path / "go").touch()
        assert run.process.wait(120) == 0, run.process.stderr.read()
    finally:
        run.process.kill()
    summary = json.loads((run.folder / "summary.json").read_text())
    assert (summary["rounds"], summary["num_failed"]) == (1, 0)
    assert files_with(token, run.folder) == []
    assert list(base.iterdir()) == []


@pytest.mark.long
def test_a_killed_runs_folder_goes_at_the_next_start(tmp_path: Path, base: Path) -> None:
    run = Run(tmp_path, base)
    run.wait()
    pids = run.pids()
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    assert len(list(base.glob(f"{FOLDERS}*"))) == 1
    deadline = time.monotonic() + 90
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []  # Ray ends itself
    second = Run(tmp_path, base)
    (tmp_path / "go").touch()
    shutil.rmtree(run.folder)
    assert second.process.wait(START_S) == 0
    assert "removed 1 folder" in (second.folder / "cutbit.log").read_text()
    assert list(base.iterdir()) == []


def test_only_folders_of_dead_processes_are_removed(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(base))
    if (child := os.fork()) == 0:
        left = Folder.make()
        (left.path / "r").mkdir()
        (left.path / "link").symlink_to(base)
        os._exit(0)  # as a kill: nothing is cleaned
    os.waitpid(child, 0)
    precious = base / "precious"
    precious.mkdir()
    (base / f"{FOLDERS}link").symlink_to(precious)
    (base / f"{FOLDERS}file").touch()
    assert len(list(base.glob(f"{FOLDERS}*"))) == 3
    mine = Folder.make()
    assert sorted(p.name for p in base.iterdir()) == sorted(
        [mine.path.name, f"{FOLDERS}link", f"{FOLDERS}file", "precious"]
    )
    with monkeypatch.context() as patched:  # another user's
        patched.setattr(os, "geteuid", lambda: 12345)
        os.close(mine.lock)
        assert sweep(base) == 0 and mine.path.exists()
    assert sweep(base) == 1 and not mine.path.exists()


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    one, other = closed({}), closed({})
    assert one[MODE] == "token" and one[NETWORK] == "0"
    assert len(one[TOKEN]) == 64 and one[TOKEN] != other[TOKEN]
    assert MODE not in closed({MODE: "disabled"}) and TOKEN not in closed({MODE: "disabled"})
    assert TOKEN not in closed({TOKEN: "mine"}) and TOKEN not in closed({TOKEN_PATH: "/a"})
    assert NETWORK not in closed({NETWORK: "1"})
    assert len(closed({MODE: "token"})[TOKEN]) == 64  # else Ray would leave one in the home folder
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("mine")
    assert TOKEN not in closed({MODE: "token"})
    assert len(closed({})[TOKEN]) == 64


def join(tmp_path: Path, wanted: str, *tokens: str) -> tuple[list[str], str]:
    """What comes of joining a cluster that wants a token with each of ``tokens``."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", JOIN, wanted, *tokens], text=True, check=True,
        cwd=ROOT, env=env | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}, capture_output=True,
    )  # fmt: skip
    return done.stdout.splitlines(), done.stderr


def test_somebody_elses_cluster_gets_the_users_token(tmp_path: Path) -> None:
    right, wrong = 40 * "a", 40 * "b"
    (none, refused, joined), _ = join(tmp_path, right, "", wrong, right)
    assert none.startswith("engine.address=HERE: asks for a token; takes the cluster's token in")
    assert refused.startswith("engine.address=HERE: does not take our token; takes the cluster's")
    assert json.loads(joined) == ["token", right]
    (without, with_one), warnings = join(tmp_path, "", "", right)
    assert json.loads(without) == [None, None]
    assert json.loads(with_one) == [None, right]
    assert warnings.count("the cluster asks for no token; whoever reaches it runs code there") == 2


def test_a_folder_that_ray_cannot_take_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    long = tmp_path / ("x" * 30)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    made = Folder.make()
    made.remove()
    assert made.path.parent == Path("/tmp")
    assert f"RAY_TMPDIR={long}: is {len(str(long))} bytes long" in caplog.text
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"^RAY_TMPDIR=.*none: takes a folder that can be written"):
        Folder.make()
