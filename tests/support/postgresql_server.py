"""A real PostgreSQL on loopback, of Debian's packages, in a folder of its own and for as long as the tests of one process run.

It runs as an unprivileged user and is ended by its process id; should the tests be killed, the kernel ends it. Without fsync: what it holds is not meant to
outlive a power cut, and no test is about that.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest

from ckp.kits.processes import run
from ckp.kits.retry import wait_until
from tests.support.ssh_server import free_port

OLDEST = 15
USER = "nobody"
"""As whom it runs where the tests are root's, for whom PostgreSQL refuses to run."""
PASSWORD = "not-a-secret of the tests"
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "120",
    "listen_addresses": "127.0.0.1",
    "log_statement": "none",
    "ssl": "off",
}


def programs() -> Path | None:
    """The folder with the newest server that is installed, and new enough."""
    found = [(int(path.parent.parent.name), path.parent) for path in Path("/usr/lib/postgresql").glob("*/bin/postgres") if path.parent.parent.name.isdigit()]
    return max(((version, path) for version, path in found if version >= OLDEST), default=(0, None))[1]


def require_programs() -> Path:
    """Skips where there is none; in CI, that is a failure."""
    folder = programs()
    if folder is None:
        text = f"needs PostgreSQL {OLDEST} or newer: packaging/setup/setup.sh test installs the system's, which is older or missing"
        if os.environ.get("CI") or os.environ.get("CKP_TESTS_BUILT"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    return folder


class PostgresqlTestServer:
    """One server.

    Args:
        folder: of its own; the user that it runs as has to get there.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        self.port = free_port()
        self.log = folder / "log"
        self.data = folder / "data"
        self.child: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)
        self._as: list[str] = []
        if os.geteuid() == 0:
            entry = pwd.getpwnam(USER)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
            self._as = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]

    def initialise(self) -> None:
        """Make its data."""
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        argv: list[str | Path] = [self.programs / "initdb", "--data-checksums", "--auth-local=trust", "--auth-host=scram-sha-256"]
        argv += ["--username=ckp", "--no-sync"]
        run([*self._as, *argv, "--encoding=UTF8", "--locale=C.UTF-8", f"--pwfile={secret}", "-D", self.data], timeout=120, what="initdb")

    def start(self, **settings: str) -> None:
        """Start it and wait until it answers."""
        options = [word for name, value in {**SETTINGS, **settings}.items() for word in ("-c", f"{name}={value}")]
        argv = [*self._as, *(["--pdeathsig", "KILL"] if self._as else []), str(self.programs / "postgres"), "-D", str(self.data)]
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [*argv, "-p", str(self.port), "-k", str(self.folder), *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._answers, what="PostgreSQL answers", timeout=60, every=0.05, reason=self.log.read_text)

    def _answers(self) -> bool:
        try:
            self.execute("select 1")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT is its fast shutdown, SIGQUIT as if its machine had stopped."""
        if self.child is not None:
            self.child.send_signal(how)
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
            self.child = None

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """As its administrator; the rows, if there are any."""
        with psycopg.connect(host=str(self.folder), port=self.port, user="ckp", dbname=database, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def make_database(self, template: str = "template0") -> str:
        """A new database; its name."""
        name = f"ckp_{next(self._numbers)}"
        self.execute(f'create database "{name}" template "{template}"')
        return name

    def url(self, database: str, *, password: str = PASSWORD, options: str = "sslmode=disable") -> str:
        """As people write it."""
        return f"postgresql://ckp:{password.replace(' ', '%20')}@127.0.0.1:{self.port}/{database}?{options}\n"


@contextmanager
def postgresql_server(*, started: bool = True) -> Iterator[PostgresqlTestServer]:
    """A server in a folder below the system's temporary one: those of pytest are closed to other users."""
    programs = require_programs()
    folder = Path(tempfile.mkdtemp(prefix="ckp-postgresql-"))
    server = PostgresqlTestServer(folder, programs)
    try:
        server.initialise()
        if started:
            server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder)
