"""The lab's nameserver as a process of the lab: at the gateway's address, so that every host and pod gets an answer at once.

The program is refuse_dns.py. Not 127.0.0.1 of each host: CoreDNS takes a nameserver there for itself, and stops (its plugin `loop`).
"""

from __future__ import annotations

import secrets
import shutil
import socket
import sys
from pathlib import Path

from ckp.kits.errors import CkpError
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until
from ckp.lab.cgroups import HostCgroup
from ckp.lab.refuse_dns import HEADER, LISTENING, RD, refusal

PROGRAM = Path(__file__).with_name("refuse_dns.py")
PORT = 53
START_TIMEOUT = 30.0
ANSWER_TIMEOUT = 1.0
KILL_TIMEOUT = 10.0
LEAF = "process"


class Nameserver:
    """The nameserver of one lab. The caller holds the lock of the lab's network.

    Args:
        directory: where its pid file and log lie; `stop` deletes it.
        address: the gateway's; it must exist.
        cgroup: its own, by which it is also found if its pid file is lost.
    """

    def __init__(self, directory: Path, address: str, cgroup: HostCgroup, port: int = PORT) -> None:
        self.directory = directory
        self.address = address
        self.port = port
        self._cgroup = cgroup
        self._daemon = Daemon("the lab's nameserver", directory / "pid", directory / "log")

    def pid(self) -> int | None:
        """Its pid, if it runs."""
        return self._daemon.pid()

    def ensure(self) -> None:
        """Start it unless it runs and answers, and wait until it does.

        Raises:
            CkpError: it can't listen there; the details show why.
            TimedOut: it did not answer in time.
        """
        if self.pid() is not None and self._ready():
            return
        self.stop()
        self._daemon.start([sys.executable, "-I", "-S", PROGRAM, self.address, str(self.port)], cgroups=self._cgroup.make(LEAF))

        def up() -> bool:
            if self.pid() is None:
                raise CkpError(
                    f"the lab's nameserver could not be started at {self.address}:{self.port}",
                    details=self._daemon.tail(),
                    resolution=f"if a nameserver of this machine has the port (`ss -lnp sport = :{self.port}`), let it listen on other addresses only",
                )
            return self._ready()

        wait_until(up, what=f"the lab's nameserver answers at {self.address}:{self.port}", timeout=START_TIMEOUT, every=0.02, reason=self._daemon.tail)

    def answers(self) -> bool:
        """Whether it refuses a query of this machine within ANSWER_TIMEOUT."""
        query = HEADER.pack(secrets.randbits(16), RD, 1, 0, 0, 0) + b"\0" + b"\0\2\0\1"  # the root's nameservers, as CoreDNS asks for its health checks
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(ANSWER_TIMEOUT)
            try:
                client.connect((self.address, self.port))
                client.send(query)
                return client.recv(512) == refusal(query)
            except OSError:
                return False

    def _ready(self) -> bool:
        return LISTENING in self._daemon.tail() and self.answers()

    def stop(self) -> None:
        """Stop it and delete its directory and cgroup, as far as they exist.

        Raises:
            TimedOut: it can't be killed.
        """
        self._daemon.stop(grace=1.0)
        self._cgroup.kill(timeout=KILL_TIMEOUT)  # one whose pid was never written
        self._cgroup.remove(timeout=KILL_TIMEOUT)
        if self.directory.exists():
            shutil.rmtree(self.directory)
