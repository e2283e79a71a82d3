"""Ray, started so that nobody else gets in, and ended so that nothing of it stays.

A Ray of our own listens on the loopback interface alone and answers nobody without a token, which
it and its workers alone know. Its sockets and logs lie in a folder that no other user may enter and
that goes with it. Where a process died before that, the next start removes its folder.

Ray takes these settings from the environment as it is imported; what it does not publish (to read
them again) is in `_read_environment` (ray 2.55, which flwr 1.42 pins).
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from app import ROOT, processors, shipped_code, signals

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
OWN_TOKEN = Path(".ray") / "auth_token"  # in a home folder, where Ray looks last
# Ray's name for whether nodes talk over the network: where not, all its servers take 127.0.0.1.
NETWORK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
FOLDERS = "cutbit-ray-"
LONGEST_BASE = 21  # socket paths end at 107 bytes, of which Ray and the folder's name take 86
ANSWER_S = 5.0
QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RaySession:
    """Ray as this process uses it until `close`.

    Attributes:
        folder: of a Ray of our own; None in somebody else's cluster.
        before: what the environment held before, by the names that were set; None for nothing.
    """

    folder: "Folder | None"
    before: Mapping[str, str | None]

    def close(self) -> None:
        """End Ray, or leave the cluster, and take back what was set."""
        _end()
        _restore(self.before)
        if self.folder is not None:
            self.folder.remove()


def start_once(count: int | None, address: str | None) -> RaySession | None:
    """Do as `start`, unless this process uses a Ray already: then there is nothing to close."""
    if ray.is_initialized():
        return None
    with signals.shielded():  # Ray puts handlers of its own in the place of ours
        return start(count, address)


def start(count: int | None, address: str | None) -> RaySession:
    """Start a Ray with ``count`` CPUs (None: what may be used here), or join one at ``address``.

    Raises:
        ValueError: the cluster wants a token that the user has not; names engine.address.
    """
    if address is not None:
        return _join(address)
    folder = Folder.make()
    before = _set(closed(os.environ))
    # Ray puts the folder that it is started in first, where a user's own models/ may lie.
    with _undone_on_error(RaySession(folder, before)), contextlib.chdir(ROOT):
        ray.init(
            "local",  # without it Ray would join any cluster that it finds on this machine
            num_cpus=count or processors.usable(),
            include_dashboard=False,
            _temp_dir=str(folder.path / "r"),  # Ray lets everybody into this one
            **QUIET,
        )
    if os.environ[MODE] == "disabled":
        log.warning("RAY_AUTH_MODE=disabled: every user of this machine can run code as you")
    return RaySession(folder, before)


def closed(environment: Mapping[str, str]) -> dict[str, str]:
    """What to set for a Ray of our own; what the user has set stays as it is."""
    # The workers inherit this, and so find our packages wherever the driver was started.
    paths = [str(ROOT), str(Path.cwd()), *filter(None, [environment.get("PYTHONPATH")])]
    wanted = {
        MODE: "token",
        NETWORK: "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_COLOR_PREFIX": "0",  # else colours go into files, too
    }
    found = {name: value for name, value in wanted.items() if name not in environment}
    has_token = TOKEN in environment or TOKEN_PATH in environment
    if MODE in environment:  # then Ray's own rules hold
        has_token = has_token or (Path.home() / OWN_TOKEN).is_file()
    if not has_token and environment.get(MODE, "token") == "token":
        found[TOKEN] = secrets.token_hex(32)
    return found | {"PYTHONPATH": os.pathsep.join(paths)}


def _end() -> None:
    """End Ray with all its processes.

    They do not hear SIGTERM (`signals.shielded`), so that Ray would wait a second for each, and
    what its raylet started would outlive it by minutes. Who they are Ray does not publish.
    """
    import psutil  # which Ray brings, and puts where it is found

    node: Any = getattr(
        getattr(getattr(ray, "_private", None), "worker", None), "_global_node", None
    )
    started = [one.process for each in getattr(node, "all_processes", {}).values() for one in each]
    beneath: list[Any] = []
    for process in started:
        process.terminate = process.kill
        with contextlib.suppress(psutil.Error):
            beneath += psutil.Process(process.pid).children(recursive=True)
    ray.shutdown()
    for process in beneath:
        with contextlib.suppress(psutil.Error):
            process.kill()


# Somebody else's cluster --------------------------------------------------------------------------


def _join(address: str) -> RaySession:
    """Join a cluster with the user's token, or say that it asks for none."""
    wanted = {
        MODE: "token",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # What `ray job submit` sent along stays, but for the folder of the code.
        "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
        # Ray would end this process when the head is gone for a minute; app.cluster says so before.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    where = "" if address.startswith("ray://") else _host_and_port(address)
    is_open = bool(where) and answers(where)
    if is_open:
        added.pop(MODE, None)  # with it our side would refuse the cluster's answers
        log.warning(
            "engine.address=%s: the cluster asks for no token; whoever reaches it runs code there",
            address,
        )
    session = RaySession(None, _set(added))
    sent, own = shipped_code.ours(), shipped_code.users()
    with _undone_on_error(session), shipped_code.folder({**own, **sent}) as code:
        if where and not is_open:
            _check_token(address, where)
        try:
            ray.init(address=address, runtime_env={"working_dir": str(code)}, **QUIET)
        except (ConnectionError, RuntimeError, ValueError) as error:
            lines = " ".join(str(error).split())
            raise ValueError(f"engine.address={address}: {lines}") from error
    log.info("engine.address=%s: code goes along: %s", address, shipped_code.said(sent, own))
    return session


def _host_and_port(address: str) -> str:
    """What Ray makes of an address, ``auto`` among them; empty where it finds none."""
    with contextlib.suppress(ConnectionError, ValueError):
        return services.canonicalize_bootstrap_address(address) or ""
    return ""


def answers(where: str, header: Mapping[str, str] | None = None) -> bool:
    """Whether a cluster's control service answers who sends this header."""
    with grpc.insecure_channel(where) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=ANSWER_S, metadata=tuple((header or {}).items()))
        except grpc.RpcError:
            return False
        return True


def _check_token(address: str, where: str) -> None:
    """Refuse here what Ray would refuse after twenty seconds of trying.

    Raises:
        ValueError: names engine.address.
    """
    takes = f"takes the cluster's token in {TOKEN}, {TOKEN_PATH} or ~/{OWN_TOKEN}"
    try:
        header = AuthenticationTokenLoader.instance().get_token_for_http_header()
    except (AuthenticationError, RuntimeError) as error:
        raise ValueError(f"engine.address={address}: asks for a token; {takes}") from error
    if not answers(where, header):
        raise ValueError(f"engine.address={address}: does not take our token; {takes}")


# The environment ----------------------------------------------------------------------------------


def _set(added: Mapping[str, str]) -> dict[str, str | None]:
    """Set variables, have Ray read them, and return what was there before."""
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    _read_environment()
    return before


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _read_environment()


def _read_environment() -> None:
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    default = "0" if ray_constants.IS_WINDOWS_OR_OSX else "1"
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(NETWORK, default).lower() in ("1", "true")


@contextlib.contextmanager
def _undone_on_error(session: RaySession) -> Iterator[None]:
    try:
        yield
    except BaseException:
        session.close()
        raise


# The folder ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """A folder for one Ray, locked by the process that started it; a lock ends with its process.

    Attributes:
        path: of it; mode 700.
        lock: descriptor that holds the lock. No process that we start inherits it.
    """

    path: Path
    lock: int

    @staticmethod
    def make() -> "Folder":
        """Make one, and remove those that processes of this user left behind."""
        base = _base()
        if count := sweep(base):
            log.info("removed %d folders that runs which were killed left in %s", count, base)
        while True:
            path = Path(tempfile.mkdtemp(prefix=FOLDERS, dir=base))
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():  # else another process took it for left behind
                return Folder(path, lock)
            os.close(lock)

    def remove(self) -> None:
        """Remove it; where something is still being written, the next sweep does."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def sweep(base: Path) -> int:
    """Remove the folders of this user whose process is gone, and return how many there were."""
    count = 0
    for path in base.glob(f"{FOLDERS}*"):
        with contextlib.suppress(OSError):  # a link, another user's, in use, or gone by now
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
                    count += 1
            finally:
                os.close(lock)
    return count


def _base() -> Path:
    """The system's folder for temporary files, or RAY_TMPDIR; /tmp where sockets do not fit in.

    Raises:
        ValueError: RAY_TMPDIR is no folder that can be written to.
    """
    wanted = os.environ.get("RAY_TMPDIR")
    base = wanted or tempfile.gettempdir()
    if wanted and not (Path(wanted).is_dir() and os.access(wanted, os.W_OK)):
        raise ValueError(f"RAY_TMPDIR={wanted}: takes a folder that can be written to")
    if (length := len(os.fsencode(base))) <= LONGEST_BASE:
        return Path(base)
    if wanted:
        log.warning(
            "RAY_TMPDIR=%s: is %d bytes long, and Ray's sockets take %d or fewer; /tmp is used",
            wanted, length, LONGEST_BASE,
        )  # fmt: skip
    return Path("/tmp")
