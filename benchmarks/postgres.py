"""A PostgreSQL of one's own on loopback, for as long as a ``with`` lasts, from binaries that are there."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Server", "binaries", "running"]


def binaries() -> Path | None:
    """The folder of initdb and postgres, the newest where there are several; None where there is none."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return Path(found).resolve().parent if found else debian[-1].parent if debian else None


@contextmanager
def running(*settings: str) -> Iterator[Server]:
    """A new server with an empty database.

    Args:
        settings: as in postgresql.conf, such as "fsync=off".

    Raises:
        subprocess.CalledProcessError: it could not be made.
    """
    home = Path(tempfile.mkdtemp(prefix="memplug-postgres-"))
    server = Server(home, settings)
    try:
        server.make()
        server.start()
        yield server
    finally:
        with suppress(subprocess.CalledProcessError):
            server.stop()
        shutil.rmtree(home, ignore_errors=True)


class Server:
    """A server with its files in ``home``.

    Attributes:
        url: of a database.
    """

    def __init__(self, home: Path, settings: tuple[str, ...]) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self._port = one.getsockname()[1]
        self._home, self._settings = home, settings
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # which PostgreSQL does not run as
            names = [one.pw_name for one in pwd.getpwall()]
            self._as = {"user": "postgres" if "postgres" in names else "nobody"}
            shutil.chown(home, self._as["user"])
        self.url = f"postgresql+psycopg://memplug@127.0.0.1:{self._port}/postgres"

    def make(self) -> None:
        """Make its files; whoever is on this machine may come in."""
        self._run(
            "initdb", "-D", self._home / "data", "-U", "memplug", "-A", "trust", "-E", "UTF8", "--no-sync"
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        given = [f"port={self._port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self._home}"]
        options = " ".join(f"-c {one}" for one in (*given, *self._settings))
        self._run("pg_ctl", "-D", self._home / "data", "-w", "-l", self._home / "log", "-o", options, "start")

    def database(self) -> str:
        """The URL of a new database."""
        name = f"memplug{time.monotonic_ns()}"
        self._run("createdb", "-h", "127.0.0.1", "-p", self._port, "-U", "memplug", name)
        return self.url.removesuffix("postgres") + name

    def stop(self, how: str = "immediate") -> None:
        """Stop it, "fast" or, as in a crash, "immediate"."""
        self._run("pg_ctl", "-D", self._home / "data", "-w", "-m", how, "stop")
        time.sleep(0.1)

    def _run(self, name: str, *given: object) -> None:
        folder = binaries()
        if folder is None:
            raise FileNotFoundError("PostgreSQL is not installed")
        line = [str(folder / name), *map(str, given)]
        subprocess.run(
            line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd="/", **self._as
        )
