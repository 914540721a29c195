"""One host of the lab: a systemd container with a persistent disk, which can be started, entered, shut down, or have its power cut.

Its disk is an overlay of the shared base and its own writes. The directories in VOLUMES are plain ones, because containerd's
overlays can't be on an overlay, and etcd needs a real disk. The host's directory:

    host.json            its record (HostRecord)
    upper/ work/ root/   the overlay's writes, its scratch space, and where it is mounted (seen by the host alone)
    volumes/             the plain directories
    pid console.log      the pid of its keeper process, and the output of keeper and boot
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
from ckp.kits.streams import stream
from ckp.lab import cgroups, enter, ssh
from ckp.lab.network import HostSpec, LabNetwork

__all__ = ["HostRecord", "HostSpec", "LabHost", "VOLUMES"]

VOLUMES = {"containerd": "/var/lib/containerd", "kubelet": "/var/lib/kubelet", "etcd": "/var/lib/etcd", "ckp": "/var/lib/ckp"}
"""Directories that are plain ones on the machine's disk: name below volumes/, and path inside the host."""

BOOT_TIMEOUT = 180.0
"""Seconds until a host must be up. It takes about two, but many may boot at once on a busy machine."""

SHUTDOWN_TIMEOUT = 90.0
KILL_TIMEOUT = 30.0
LOCK_TIMEOUT = 300.0
CONSOLE_LIMIT = 1 << 20
"""Size in bytes above which console.log is deleted at the next start."""

PREPARE = "ckp-lab-prepare.service"
"""The unit of the base that prepares the container as a host (rootfs/). Unlike other units, it must not fail."""

_BOOT_SCRIPT = Path(__file__).with_name("boot.sh")


class _WentDown(CkpError):
    """The host stopped while it was booting."""


@dataclass(frozen=True)
class HostRecord:
    """A host's record, written when it is created, and never changed."""

    name: str
    address: str
    machine_id: str
    base: str

    def to_json(self) -> str:
        """The content of host.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> HostRecord:
        """Parse host.json. Raises CkpError if it is malformed."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise CkpError(f"host.json is malformed: {error}", resolution="`ckp lab down` removes the lab's hosts whatever their state") from error


class LabHost:
    """A host of the lab, running or not. Thread-safe: changes are made under the host's lock."""

    def __init__(self, directory: Path, lock: Path, network: LabNetwork, record: HostRecord) -> None:
        self.directory = directory
        self.record = record
        self._lock = lock
        self._network = network
        self._cgroup = cgroups.HostCgroup(network.bridge, record.name, tuple(cgroups.machine_hierarchies()))
        self._daemon = Daemon(f"lab host {record.name}", directory / "pid", directory / "console.log")

    @property
    def name(self) -> str:
        """Its name, which is also its host name."""
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
        """Bytes of memory that it uses now, with its page cache; 0 if it is off."""
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
        """Run a command inside as root, in `/`, to its end, and return its output.

        Args:
            timeout: seconds after which it is killed.
            stdin: its standard input. Pass secrets this way: every user of the machine can read arguments and `env` in /proc.
            check: raise if its exit code is not 0.
            env: added to a minimal environment (PATH, HOME, LANG, USER); nothing is inherited from the machine.
            what: the work's name in an error.

        Raises:
            ProcessFailed: it failed (with `check`), or ran out of time.
            CkpError: the host is not running.
        """
        name = f"{what or Path(argv[0]).name} on {self.name}"
        return run(self._inside(argv, env), timeout=timeout, stdin=stdin, check=check, what=name, cwd=Path("/"))

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None], stdin: str | bytes | None = None) -> int:
        """Run a command inside, and call `on_line` for each line of its output (both streams) as it comes; returns its exit code.

        Raises ProcessFailed if it did not end within `timeout` seconds, CkpError if the host is not running.
        """
        return stream(self._inside(argv), timeout=timeout, on_line=on_line, stdin=stdin, what=f"{Path(argv[0]).name} on {self.name}")

    def shell(self) -> int:
        """A login shell inside, on this terminal; returns its exit code. No timeout: the user ends it."""
        login = ["bash", "--login"]
        if sys.stdin.isatty():
            # The machine's terminal has no device inside. `script` creates one, and forwards input and window size.
            login = ["script", "--quiet", "--return", "--command", "bash --login", "/dev/null"]
        return subprocess.call(self._inside(login, {"TERM": os.environ.get("TERM", "xterm")}))

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        """Write a file of the machine, or bytes, to `target` inside, atomically; missing directories are created.

        Raises ProcessFailed if it can't be written, CkpError if the host is not running.
        """
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        script = 'mkdir -p "$(dirname "$1")"; t=$(mktemp "$1.XXXXXX"); trap \'rm -f "$t"\' EXIT; cat >"$t"; chmod "$2" "$t"; mv -T "$t" "$1"'
        output: list[str] = []
        code = stream(
            self._inside(["sh", "-euc", script, "push", target, f"{mode:o}"]),
            timeout=60 + size / 5e6,  # a very slow disk
            on_line=output.append,
            stdin=source,
            what=f"writing {target} on {self.name}",
        )
        if code:
            raise CkpError(f"{target} could not be written on {self.name}", details="\n".join(output))

    def pull(self, source: str) -> bytes:
        """The content of a file inside. Raises ProcessFailed if it can't be read, CkpError if the host is not running."""
        encoded = self.run(["base64", "--wrap=0", "--", source], timeout=300, what=f"reading {source}").stdout
        return base64.b64decode(encoded)

    # -- power

    def start(self) -> None:
        """Boot it unless it runs, and wait until systemd has started all units and the network works.

        Raises:
            TimedOut: it was not up in time; the details show what it waited for.
            NotFound: it was removed, or its base was.
        """
        with self._locked("starting"):
            if not (self.directory / "host.json").exists():
                raise NotFound(f"host {self.name} has been removed")
            if self.running:
                try:
                    self._wait_up()
                except _WentDown:
                    pass  # A process that was shutting it down was killed before it had finished.
                else:
                    return
            self._clear()
            self._boot()
            self._wait_up()

    def power_off(self) -> None:
        """Shut it down cleanly, and kill it after SHUTDOWN_TIMEOUT. No error if it is off."""
        with self._locked("shutting down"):
            self._daemon.stop(grace=SHUTDOWN_TIMEOUT)
            self._clear()

    def power_cut(self) -> None:
        """Kill all its processes at once, as a power cut does; its disk stays as it is. No error if it is off."""
        # Kill before waiting for the lock: a process that is starting the host must not delay it, and will see it die.
        self._cgroup.kill(timeout=KILL_TIMEOUT)
        with self._locked("cutting the power of"):
            self._clear()

    def remove(self) -> None:
        """Cut its power and delete its disk. No error if it does not exist."""
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
        """Remove what an earlier run left: processes without keeper, cgroups, network link, pid file."""
        self._cgroup.kill(timeout=KILL_TIMEOUT)
        self._cgroup.remove(timeout=KILL_TIMEOUT)
        self._network.unplug(machine_name(self._network, self.name))
        self._daemon.pidfile.unlink(missing_ok=True)

    def _boot(self) -> None:
        base = Path(self.record.base)
        if not base.is_dir():
            raise NotFound(
                f"the base file system of host {self.name} is gone: {base}",
                resolution="its disk can't be used without it (was the cache cleaned?): run `ckp lab down`, then `ckp lab up`",
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
        """The output of a command inside; "" if it can't be run at the moment."""
        try:
            return self.run(argv, timeout=10, check=False).stdout.strip()
        except (CkpError, OSError):  # It is going down, or does not have its cgroups yet.
            return ""

    @contextmanager
    def _locked(self, doing: str) -> Iterator[None]:
        with exclusive(self._lock, what=f"{doing} host {self.name}", timeout=LOCK_TIMEOUT):
            yield


def machine_name(network: LabNetwork, name: str) -> str:
    """The host's name for systemd-nspawn: with the bridge, so that hosts of two labs may have the same name."""
    return f"{network.bridge}-{name}"


def nspawn(network: LabNetwork, record: HostRecord, directory: Path) -> list[str]:
    """The command that boots a host whose root file system is mounted at `directory`/root."""
    binds = [f"--bind={directory}/volumes/{name}:{place}" for name, place in VOLUMES.items()]
    if Path("/lib/modules").is_dir():
        binds.append("--bind-ro=/lib/modules")  # so that modprobe works inside
    return [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        f"--directory={directory}/root",
        f"--machine={machine_name(network, record.name)}",
        f"--hostname={record.name}",
        f"--uuid={record.machine_id}",
        # The machine may not run systemd, which would create a scope; the lab makes the cgroups instead.
        "--register=no",
        "--keep-unit",
        f"--network-bridge={network.bridge}",
        # A node's runtime, kubelet and network plugin need all capabilities.
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
    """The files that give a new host its identity: path inside, and content."""
    return {
        "etc/machine-id": f"{record.machine_id}\n",
        "etc/hostname": f"{record.name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n{record.address} {record.name}\n{network.registry_address} registry.ckp.lab\n",
        # The lab's nameserver refuses every query at once: outside names can't be resolved from a lab.
        "etc/resolv.conf": f"nameserver {network.gateway}\n",
        # Sorts before 80-container-host0.network, which would ask for DHCP.
        "etc/systemd/network/10-host0.network": (
            f"[Match]\nName=host0\n\n[Network]\nAddress={record.address}/{network.prefix}\nGateway={network.gateway}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        ),
    }


def furnish(directory: Path, network: LabNetwork, record: HostRecord, authorized: str) -> list[str]:
    """Create the content of a new host's directory: a disk with only its identity files. Returns the public parts of its SSH host keys.

    Args:
        authorized: the line of the public key that may log in as root.
    """
    for name in ("upper", "work", "root", *(f"volumes/{volume}" for volume in VOLUMES)):
        (directory / name).mkdir(parents=True)
    for path, content in identity_files(network, record).items():
        atomic_write(directory / "upper" / path, content)
    # The host sees these directories as its own /, /etc and so on: their modes must not depend on the umask.
    for made in directory.rglob("*"):
        if made.is_dir():
            made.chmod(0o755)
    (directory / "volumes/etcd").chmod(0o700)
    (directory / "upper/etc/machine-id").chmod(0o444)
    keys = ssh.furnish(directory / "upper", record.name, authorized)
    atomic_write(directory / "host.json", record.to_json())
    return keys


def discard(directory: Path) -> None:
    """Delete a host's directory. It is renamed first, so that a partly deleted one is never taken for a host."""
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
