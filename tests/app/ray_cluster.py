"""A Ray cluster with several nodes on this machine, none of which sees the repository.

It runs in a process of its own, by a Python that has our libraries and not our packages, in
another folder, without PYTHONPATH, and asks for a token. Each node has a cache folder of its own,
and no data.
"""

import contextlib
import json
import os
import subprocess
import sysconfig
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOKEN = 40 * "c"
CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster

nodes = json.loads(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args=nodes[0])
started = [cluster.head_node] + [cluster.add_node(**one) for one in nodes[1:]]
print(cluster.address, flush=True)
for line in sys.stdin:
    word, index = line.split()
    if word == "add":
        started.append(cluster.add_node(**nodes[int(index)]))
    elif word == "lose":  # as a machine goes: its raylet first, and nobody says so
        started[int(index)].kill_raylet(check_alive=False)
    elif word == "crash":
        cluster.head_node.kill_gcs_server(check_alive=False)
    print("done", flush=True)
cluster.shutdown()
"""


class RayCluster:
    """A cluster; the first node is the head.

    Args:
        folder: for what it needs.
        cpus: of each node.
        environments: further variables of nodes, by their number.
        object_store_memory: bytes, of each node.
        variables: further ones of all.
    """

    def __init__(
        self,
        folder: Path,
        cpus: Sequence[int],
        environments: Mapping[int, Mapping[str, str]] | None = None,
        object_store_memory: int = 80 << 20,
        **variables: str,
    ) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir(parents=True)
        nodes: list[dict[str, Any]] = [
            {
                "num_cpus": count,
                "object_store_memory": object_store_memory,
                "env_vars": {
                    "XDG_CACHE_HOME": str(self.cache(index).parent),
                    **(environments or {}).get(index, {}),
                },
            }
            for index, count in enumerate(cpus)
        ]
        self._sockets = tempfile.TemporaryDirectory(prefix="cutbit-cluster-")  # paths are short
        nodes[0]["temp_dir"] = self._sockets.name
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "RAY_AUTH_MODE": "token"}
        env |= {"RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
        env |= variables
        self.process = subprocess.Popen(
            [python(folder / "python"), "-W", "ignore", "-c", CLUSTER, json.dumps(nodes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "err").open("w"),
            cwd=home, env=env, text=True,
        )  # fmt: skip
        self.address = self._line()

    def cache(self, index: int) -> Path:
        """Where a node keeps what it prepared."""
        return self.folder / f"cache{index}" / "cutbit"

    def say(self, word: str, index: int) -> None:
        """Have a node added, or have one go."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word} {index}\n")
        self.process.stdin.flush()
        assert self._line() == "done"

    def close(self) -> None:
        """End it."""
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        with contextlib.suppress(OSError):
            self._sockets.cleanup()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, (self.folder / "err").read_text()
        return line


def python(folder: Path) -> str:
    """A Python with the libraries of this one; editable packages are not among them."""
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return str(folder / "bin" / "python")


def joined() -> dict[str, str]:
    """The environment of a driver that may join."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return env | {"RAY_AUTH_TOKEN": TOKEN}
