"""One host of the lab: a systemd machine with a disk that outlives it, which can be started, entered, shut down, and cut off.

Its disk is an overlay: the base that all hosts share below, and its own writes above. The directories in VOLUMES are plain ones, because
containerd's own overlays can't lie on an overlay, and etcd wants a real disk. All of it is in the host's directory:

    host.json            what it is (HostRecord)
    upper/ work/ root/   the overlay's writes, its scratch space, and where it is mounted (seen by the host alone)
    volumes/             the plain directories
    pid console.log      the process that keeps it going, and what that and the boot said
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ckp.kits.errors import CkpError, NotFound
from ckp.kits.files import atomic_write, exclusive
from ckp.kits.processes import Daemon, Finished, in_cgroups, run
from ckp.kits.retry import wait_until
from ckp.lab import cgroups, enter
from ckp.lab.network import HostSpec, LabNetwork

__all__ = ["HostRecord", "HostSpec", "LabHost", "VOLUMES"]

VOLUMES = {"containerd": "/var/lib/containerd", "kubelet": "/var/lib/kubelet", "etcd": "/var/lib/etcd", "ckp": "/var/lib/ckp"}
"""Directories of the host that are plain ones on the machine's disk: name below volumes/, and place inside."""

BOOT_TIMEOUT = 180.0
"""Seconds until a host must be up; it takes some two, but many may boot on a busy machine."""

SHUTDOWN_TIMEOUT = 90.0
KILL_TIMEOUT = 30.0
LOCK_TIMEOUT = 300.0
CONSOLE_LIMIT = 1 << 20
"""Bytes after which console.log begins anew at the next start."""

PREPARE = "ckp-lab-prepare.service"
"""The unit of the base that makes a machine of the container (rootfs/). Other units may fail, as on any machine; not this one."""

_BOOT_SCRIPT = Path(__file__).with_name("boot.sh")


class _WentDown(CkpError):
    """The host ended while somebody waited for it to come up."""


@dataclass(frozen=True)
class HostRecord:
    """What is written down of a host when it is made; nothing of it ever changes."""

    name: str
    address: str
    machine_id: str
    base: str

    def to_json(self) -> str:
        """The content of host.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> HostRecord:
        """The record in host.json. Raises CkpError if it isn't one."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise CkpError(f"host.json is not a host's record: {error}", resolution="`ckp lab down` removes the lab's hosts whatever their state") from error


class LabHost:
    """A host of the lab, running or not. Methods may be called from any thread; what changes the host is done under its lock."""

    def __init__(self, directory: Path, lock: Path, network: LabNetwork, record: HostRecord) -> None:
        self.directory = directory
        self.record = record
        self._lock = lock
        self._network = network
        self._cgroup = cgroups.HostCgroup(network.bridge, record.name, tuple(cgroups.machine_hierarchies()))
        self._daemon = Daemon(f"lab host {record.name}", directory / "pid", directory / "console.log")

    @property
    def name(self) -> str:
        """Its name, which is its hostname too."""
        return self.record.name

    @property
    def address(self) -> str:
        """Its IPv4 address on the lab's network."""
        return self.record.address

    @property
    def running(self) -> bool:
        """Whether it has a first process: it may still be booting, or shutting down."""
        return self._leader() is not None

    @property
    def memory(self) -> int:
        """Bytes of memory that it holds now, its page cache included; 0 if it is off."""
        return self._cgroup.memory()

    # -- inside

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float,
        stdin: str | bytes | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        what: str = "",
    ) -> Finished:
        """Run a command inside as root, in `/`, to its end, and return what it said.

        Args:
            timeout: seconds after which it is killed.
            stdin: its standard input. Give secrets this way: arguments and `env` can be read by anyone in the machine's process list.
            check: raise when it ends with another code than 0.
            env: added to a bare environment (PATH, HOME, LANG, USER); nothing is inherited from the machine.
            what: how to name the work in an error.

        Raises:
            ProcessFailed: it failed (with `check`), or ran out of time.
            CkpError: the host is not running.
        """
        name = f"{what or Path(argv[0]).name} on {self.name}"
        return run(self._inside(argv, env), timeout=timeout, stdin=stdin, check=check, what=name, cwd=Path("/"))

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None], stdin: str | bytes | None = None) -> int:
        """Run a command inside, and hand over what it says (both streams) line by line as it comes; returns its exit code.

        Raises ProcessFailed if it did not end within `timeout` seconds, CkpError if the host is not running.
        """
        return enter.stream(self._inside(argv), timeout=timeout, on_line=on_line, stdin=stdin, what=f"{Path(argv[0]).name} on {self.name}")

    def shell(self) -> int:
        """A login shell inside, on our terminal; returns its exit code. Unbounded: it ends when the person ends it."""
        login = ["bash", "--login"]
        if sys.stdin.isatty():
            # The machine's terminal has no name inside; `script` makes one of the host's own, and passes on what is typed and resized.
            login = ["script", "--quiet", "--return", "--command", "bash --login", "/dev/null"]
        return subprocess.call(self._inside(login, {"TERM": os.environ.get("TERM", "xterm")}))

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        """Write a file of the machine, or some bytes, to `target` inside: whole or not at all, missing directories made.

        Raises ProcessFailed if it can't be written, CkpError if the host is not running.
        """
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        script = 'mkdir -p "$(dirname "$1")"; t=$(mktemp "$1.XXXXXX"); trap \'rm -f "$t"\' EXIT; cat >"$t"; chmod "$2" "$t"; mv -T "$t" "$1"'
        said: list[str] = []
        code = enter.stream(
            self._inside(["sh", "-euc", script, "push", target, f"{mode:o}"]),
            timeout=60 + size / 5e6,  # a very slow disk
            on_line=said.append,
            stdin=source,
            what=f"writing {target} on {self.name}",
        )
        if code:
            raise CkpError(f"{target} could not be written on {self.name}", details="\n".join(said))

    def pull(self, source: str) -> bytes:
        """The content of a file inside. Raises ProcessFailed if it can't be read, CkpError if the host is not running."""
        encoded = self.run(["base64", "--wrap=0", "--", source], timeout=300, what=f"reading {source}").stdout
        return base64.b64decode(encoded)

    # -- power

    def start(self) -> None:
        """Boot it unless it runs, and wait until systemd inside has started everything and its network answers.

        Raises:
            TimedOut: it was not up in time; what it was busy with is in the details.
        """
        with self._locked("starting"):
            if not (self.directory / "host.json").exists():
                raise NotFound(f"host {self.name} has been removed")
            if self.running:
                try:
                    self._wait_up()
                except _WentDown:
                    pass  # Somebody was shutting it down, and did not live to see it.
                else:
                    return
            self._clear()
            self._boot()
            self._wait_up()

    def power_off(self) -> None:
        """Shut it down as its administrator would; what is still there after a minute and a half is killed. Off already is fine."""
        with self._locked("shutting down"):
            self._daemon.stop(grace=SHUTDOWN_TIMEOUT)
            self._clear()

    def power_cut(self) -> None:
        """Kill everything of it at once, as if its plug were pulled; its disk stays as it is. Off already is fine."""
        # Kill before asking for the lock: whoever is starting the host shall not delay it, and will see it die.
        self._cgroup.kill(timeout=KILL_TIMEOUT)
        with self._locked("cutting the power of"):
            self._clear()

    def remove(self) -> None:
        """Cut its power and delete its disk. Not there is fine."""
        self._cgroup.kill(timeout=KILL_TIMEOUT)
        with self._locked("removing"):
            self._clear()
            discard(self.directory)

    # -- how

    def _keeper_alive(self) -> bool:
        return self._daemon.pid() is not None

    def _leader(self) -> int | None:
        """The machine's pid of the host's first process: the child of systemd-nspawn that is pid 1 in a namespace of its own."""
        keeper = self._daemon.pid()
        if keeper is None:
            return None
        return next((pid for nspawn in _children(keeper) for pid in _children(nspawn) if _is_init(pid)), None)

    def _inside(self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> list[str]:
        leader = self._leader()
        if leader is None:
            raise CkpError(f"host {self.name} is not running", details=self._daemon.tail(5), resolution="start it: `ckp lab up`")
        return enter.inside(leader, self._cgroup.session(), argv, env)

    def _clear(self) -> None:
        """Leave nothing of an earlier run: processes that lost their keeper, cgroups, cable, pid file."""
        self._cgroup.kill(timeout=KILL_TIMEOUT)
        self._cgroup.remove(timeout=KILL_TIMEOUT)
        self._network.unplug(machine_name(self._network, self.name))
        self._daemon.pidfile.unlink(missing_ok=True)

    def _boot(self) -> None:
        base = Path(self.record.base)
        if not base.is_dir():
            raise NotFound(
                f"the base file system of host {self.name} is gone: {base}",
                resolution="a host's disk is of no use without it (was the cache cleaned?): `ckp lab down`, then up again",
            )
        if self._daemon.log.exists() and self._daemon.log.stat().st_size > CONSOLE_LIMIT:
            self._daemon.log.unlink()
        keeper = self._cgroup.make(cgroups.KEEPER)
        machine = self._cgroup.make(cgroups.MACHINE)
        self._daemon.start(
            [
                *("unshare", "--mount", "--propagation", "slave"),
                *("sh", "-c", _BOOT_SCRIPT.read_text(), "keeper", base, self.directory),
                *in_cgroups(machine, nspawn(self._network, self.record, self.directory)),
            ],
            cgroups=keeper,
        )

    def _wait_up(self) -> None:
        seen = ""

        def up() -> bool:
            nonlocal seen
            if not self._keeper_alive():
                raise _WentDown(f"host {self.name} went down while it was booting", details=self._daemon.tail())
            if not self.running:
                return False
            state = self._try(["systemctl", "is-system-running"])
            seen = f"systemd: {state or 'not answering yet'}"
            if state not in {"running", "degraded"}:
                return False
            if state == "degraded" and self._try(["systemctl", "is-failed", PREPARE]) == "failed":
                raise CkpError(f"host {self.name} could not be prepared", details=self._try(["journalctl", "--no-pager", "--unit", PREPARE]))
            seen = f"no answer from {self._network.gateway}"
            return bool(self._try(["ping", "-c", "1", "-W", "1", self._network.gateway]))

        def reason() -> str:
            jobs = self._try(["systemctl", "list-jobs", "--no-pager"]) if self.running else ""
            return "\n".join(part for part in (seen, jobs, self._daemon.tail()) if part)

        wait_until(up, what=f"host {self.name} is up", timeout=BOOT_TIMEOUT, every=0.1, reason=reason)

    def _try(self, argv: list[str]) -> str:
        """What a command inside says; nothing if it can't be run, or not now."""
        try:
            return self.run(argv, timeout=10, check=False).stdout.strip()
        except (CkpError, OSError):  # It is going down, or has not got its cgroups yet.
            return ""

    @contextmanager
    def _locked(self, doing: str) -> Iterator[None]:
        with exclusive(self._lock, what=f"{doing} host {self.name}", timeout=LOCK_TIMEOUT):
            yield


def machine_name(network: LabNetwork, name: str) -> str:
    """What systemd-nspawn calls the host: with the bridge, so that hosts of two labs may have one name."""
    return f"{network.bridge}-{name}"


def nspawn(network: LabNetwork, record: HostRecord, directory: Path) -> list[str]:
    """The command that boots a host whose root file system is mounted at `directory`/root."""
    binds = [f"--bind={directory}/volumes/{name}:{place}" for name, place in VOLUMES.items()]
    if Path("/lib/modules").is_dir():
        binds.append("--bind-ro=/lib/modules")  # so that modprobe inside works, as far as the machine has modules
    return [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        f"--directory={directory}/root",
        f"--machine={machine_name(network, record.name)}",
        f"--hostname={record.name}",
        f"--uuid={record.machine_id}",
        # There may be no systemd on the machine to ask for a scope; our cgroups do its work.
        "--register=no",
        "--keep-unit",
        f"--network-bridge={network.bridge}",
        # A node's runtime, kubelet and network plugin need all that root can do.
        "--capability=all",
        "--system-call-filter=add_key keyctl bpf perf_event_open",
        # The kubelet watches the kernel's log for processes that ran out of memory.
        "--bind-ro=/dev/kmsg",
        *binds,
        "--console=pipe",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
    ]


def identity_files(network: LabNetwork, record: HostRecord) -> dict[str, str]:
    """The files of a new host that make it this one: path inside, and content."""
    return {
        "etc/machine-id": f"{record.machine_id}\n",
        "etc/hostname": f"{record.name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n{record.address} {record.name}\n{network.gateway} registry.ckp.lab\n",
        # Nothing answers there, and says so at once: no name outside can be looked up from a lab.
        "etc/resolv.conf": f"nameserver {network.gateway}\n",
        # Sorts before 80-container-host0.network, which would ask for DHCP.
        "etc/systemd/network/10-host0.network": (
            f"[Match]\nName=host0\n\n[Network]\nAddress={record.address}/{network.prefix}\nGateway={network.gateway}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        ),
    }


def furnish(directory: Path, network: LabNetwork, record: HostRecord) -> None:
    """Lay out a new host's directory: an empty disk but for what tells the host who it is."""
    for name in ("upper", "work", "root", *(f"volumes/{volume}" for volume in VOLUMES)):
        (directory / name).mkdir(parents=True)
    for path, content in identity_files(network, record).items():
        atomic_write(directory / "upper" / path, content)
    # The host sees these directories as its own /, /etc and so on: our umask must not show in them.
    for made in directory.rglob("*"):
        if made.is_dir():
            made.chmod(0o755)
    (directory / "volumes/etcd").chmod(0o700)
    (directory / "upper/etc/machine-id").chmod(0o444)
    atomic_write(directory / "host.json", record.to_json())


def discard(directory: Path) -> None:
    """Delete a host's directory; it takes its name away first, so that a half-deleted one is never taken for a host."""
    doomed = directory.with_name(f".{directory.name}.doomed-{time.time_ns()}")
    try:
        directory.rename(doomed)
    except FileNotFoundError:
        return
    run(["rm", "-rf", "--one-file-system", doomed], timeout=600, what=f"deleting the disk of {directory.name}")


def _children(pid: int) -> list[int]:
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_init(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    # NSpid lists its pid in every pid namespace from ours inwards (proc(5)); State rules out a zombie, whose namespaces are gone.
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    numbers = fields.get("NSpid", "").split()
    return len(numbers) == 2 and numbers[1] == "1" and not fields["State"].strip().startswith("Z")
