"""`python main.py …` in a process of its own, without the four seconds of its imports.

The process is forked from one that has imported what main.py does, and then runs main.py as a
command line does: its arguments, streams, folder and exit code. Tests of the start itself, of
imports and of Ray begin a new interpreter instead.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_server = multiprocessing.get_context("forkserver")
IMPORTED = ["app.jobs", "app.config.help", "sklearn.datasets", "torch._dynamo", "wandb"]
_server.set_forkserver_preload(IMPORTED)


class Running:
    """A started command line.

    Args:
        arguments: of main.py.
        cwd: folder that it runs in.
        env: its environment; None takes this process's.
    """

    def __init__(
        self, *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cutbit-test-")
        self._streams = [str(Path(self._folder.name) / name) for name in ("stdout", "stderr")]
        self._arguments = arguments
        taken = (self._streams, arguments, str(cwd), dict(os.environ if env is None else env))
        self.process: BaseProcess = _server.Process(target=_main, args=taken)
        self.process.start()

    def send(self, signal_number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal_number)

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    def wait(self, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Wait for its end; what `subprocess.run` would return."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"main.py {' '.join(self._arguments)}: still runs")
        code = self.process.exitcode
        assert code is not None
        out, err = (Path(name).read_text(encoding="utf-8") for name in self._streams)
        self._folder.cleanup()
        return subprocess.CompletedProcess(["main.py", *self._arguments], code, out, err)


def run(
    *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run main.py to its end."""
    return Running(*arguments, cwd=cwd, env=env).wait()


def _main(streams: list[str], arguments: tuple[str, ...], cwd: str, env: Mapping[str, str]) -> None:
    """In the new process: what the interpreter does before main.py, then main.py."""
    for number, name in enumerate(streams, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a fork server ignores
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["main.py", *arguments]
    sys.path[0] = str(ROOT)
    runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
