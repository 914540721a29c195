"""A site's host in memory and a folder: files with their access, accounts, listening sockets, and as much of systemd as a registry's services need.

Commands are simulated by what they do, not by what a test wants to hear: a service that is started reads the files that its unit and its
configuration name, as they are then; a changed unit counts after `daemon-reload` only; and what a process has read stays what it runs with.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from ckp.clients.oci.registry import Registry
from ckp.distribution.registries import htpasswd
from ckp.kits.errors import CkpError
from ckp.kits.files import sha256_bytes
from ckp.kits.processes import Finished
from ckp.site.hosts.files import BETWEEN, LOOK
from ckp.site.hosts.questions import END, HEAD
from tests.simulators.registry import as_stream

T = TypeVar("T")
Said = tuple[int, str, str]
"""Exit code, standard output, standard error."""

UNITS = "/etc/systemd/system"
WANTS = f"{UNITS}/multi-user.target.wants"
TIMERS = f"{UNITS}/timers.target.wants"


class Killed(BaseException):
    """The process that works on the host was killed."""


class _CannotStart(Exception):
    """A service's program ends at once, with this in its journal."""


@dataclass
class Service:
    """A unit as systemd has it."""

    text: str = ""
    """As it was loaded, drop-ins included."""
    active: str = "inactive"
    sub: str = "dead"
    pid: int = 0
    starts: int = 0
    listens: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    certificate: bytes = b""
    read: dict[str, str] = field(default_factory=dict)
    """What its process has read as it started: path -> SHA-256; `unit` for the unit's text."""
    journal: list[str] = field(default_factory=list)
    result: str = "success"
    """Of the last run of a service that ends."""


class SimulatedHost:
    """A running host.

    Args:
        root: its file system lies below.
    """

    def __init__(self, root: Path, name: str = "m1", address: str = "192.0.2.10") -> None:
        self.name, self.address, self.root = name, address, root
        self.free = 100 << 30
        """Bytes that are free on its disk."""
        self.access: dict[str, str] = {}
        self.accounts: dict[str, str] = {"root": "root:x:0:0:root:/root:/bin/bash"}
        self.services: dict[str, Service] = {}
        self.sockets: list[str] = []
        """`address:port` that other programs listen on."""
        self.shows_sockets = True
        """Whether it has ss(8)."""
        self.unnamed: list[str] = []
        """Files in the registry's storage that nothing names."""
        self.ends_with = 0
        """The exit code of the program that a transient unit runs."""
        self.calls: list[str] = []
        self.kill_at: int | None = None
        """The number of the call at which the caller is killed, from 0."""
        self.kill_after = False
        """Whether that call still has its effect."""
        self._pids = 100
        for folder in ("/usr/local/sbin", "/var/lib", WANTS, TIMERS):
            self.path(folder).mkdir(parents=True)

    # -- SiteHost

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        words = [str(word) for word in argv]
        text = stdin.decode() if isinstance(stdin, bytes) else stdin
        code, out, err = self.step(" ".join(words), lambda: self._command(words, text))
        if code and check:
            raise CkpError(f"{what or words[0]} on {self.name} failed with exit code {code}", details=err)
        return Finished(tuple(words), code, out, err, 0.0)

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None]) -> int:
        raise AssertionError(f"nothing is streamed here: {argv}")

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        def write() -> None:
            self.path(target).parent.mkdir(parents=True, exist_ok=True)
            self.path(target).write_bytes(source if isinstance(source, bytes) else source.read_bytes())
            self.access[target] = f"{mode:o} root root"

        self.step(f"push {target}", write)

    def pull(self, source: str) -> bytes:
        return self.step(f"pull {source}", lambda: self.path(source).read_bytes())

    # -- for tests

    def step(self, what: str, effect: Callable[[], T]) -> T:
        """Something that a process does which may be killed before or after it."""
        number = len(self.calls)
        self.calls.append(what)
        if number == self.kill_at and not self.kill_after:
            raise Killed
        done = effect()
        if number == self.kill_at:
            raise Killed
        return done

    def path(self, path: str) -> Path:
        """Where a file of the host lies."""
        return self.root / path.lstrip("/")

    def accessed(self, path: str) -> str:
        """Mode, owner and group."""
        return self.access.get(path) or ("755 root root" if self.path(path).is_dir() else "644 root root")

    def boot(self) -> None:
        """After a power cut: systemd reads all units, and starts what is enabled."""
        self.services = {unit: Service(starts=service.starts) for unit, service in self.services.items()}
        for link in sorted([*self.path(WANTS).iterdir(), *self.path(TIMERS).iterdir()]):
            self._start(link.name)

    def tree(self) -> dict[str, str]:
        """All files and folders with content and access, and the accounts."""
        found = {f"/{path.relative_to(self.root)}": path for path in sorted(self.root.rglob("*"))}
        shown = {name: sha256_bytes(path.read_bytes()) if path.is_file() else "folder" for name, path in found.items()}
        return {name: f"{content} {self.accessed(name)}" for name, content in shown.items()} | self.accounts

    def connect(self, address: str, ca: Path, credentials: Path | None) -> Registry:
        """A client of what listens on this host, over a network where certificates are verified."""
        transport = httpx.MockTransport(lambda request: as_stream(self._answer(request, address, ca)))
        return Registry(address, transport=transport, credentials=credentials, sleep=lambda _: None)

    def _answer(self, request: httpx.Request, address: str, ca: Path) -> httpx.Response:
        service = next((item for item in self.services.values() if item.pid and item.listens in (address, f"0.0.0.0:{address.rpartition(':')[2]}")), None)
        if service is None:
            raise httpx.ConnectError("connection refused")
        try:
            x509.load_pem_x509_certificate(service.certificate).verify_directly_issued_by(x509.load_pem_x509_certificate(ca.read_bytes()))
        except InvalidSignature:
            raise httpx.ConnectError("certificate verify failed") from None
        if users := service.config.get("auth", {}).get("htpasswd"):
            given = base64.b64decode(request.headers.get("Authorization", "").removeprefix("Basic ")).decode()
            user, _, password = given.partition(":")
            if not htpasswd.matches(self.path(users["path"]).read_text(), user, password):
                return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="ckp"'}, json={"errors": []})
        return httpx.Response(200, json={}) if request.url.path == "/v2/" else httpx.Response(404, json={"errors": []})

    # -- commands

    def _command(self, words: list[str], stdin: str | None = None) -> Said:
        assert stdin is None, f"{words[0]} reads nothing here"
        name, arguments = words[0], [word for word in words[1:] if word != "--"]
        operands = [word for word in arguments if not word.startswith("-")]
        match name:
            case "sh" if words[2].startswith(HEAD):
                asked = [shlex.split(line.removesuffix(END).removesuffix(" 2>/dev/null")) for line in words[2].removeprefix(HEAD).splitlines()]
                answers = [self._command(each)[:2] for each in asked]
                return 0, "".join(f"{out}\036{code}\036" for code, out in answers), ""
            case "sh" if words[2] == LOOK:
                sums, shown = (self._command([*command, "--", *words[4:]])[1] for command in (["sha256sum"], ["stat"]))
                return 0, f"{sums}{BETWEEN}{shown}", ""
            case "sha256sum":
                there = [path for path in operands if self.path(path).is_file()]
                return int(there != operands), "".join(f"{sha256_bytes(self.path(path).read_bytes())}  {path}\n" for path in there), ""
            case "stat":
                there = [path for path in operands if self.path(path).exists()]
                return int(there != operands), "".join(f"{path} {self.accessed(path)}\n" for path in there), ""
            case "df":
                return (0, f"     Avail\n{self.free}\n", "") if self.path(operands[0]).exists() else (1, "", "df: no such file")
            case "ss":
                ours = [f'{item.listens} users:(("ckp-registry",pid={item.pid},fd=3))' for item in self.services.values() if item.pid]
                others = [f'{socket} users:(("nginx",pid=77,fd=6))' for socket in self.sockets]
                lines = [f"LISTEN 0 4096 {place.replace(' ', ' 0.0.0.0:* ', 1)}\n" for place in [*ours, *others]]
                return (0, "".join(lines), "") if self.shows_sockets else (127, "", "ss: not found")
            case "getent":
                line = self.accounts.get(operands[1], "")
                return (0, f"{line}\n", "") if line else (2, "", "")
            case "useradd":
                user, comment = words[-1], words[words.index("--comment") + 1]
                if user in self.accounts:
                    return 9, "", "exists"
                self.accounts[user] = f"{user}:x:998:998:{comment}:/nonexistent:/usr/sbin/nologin"
                return 0, "", ""
            case "userdel":
                if any(f" {operands[0]}" in access for path, access in self.access.items() if self.path(path).exists()):
                    raise AssertionError("files are left that belong to nobody")
                return (0, "", "") if self.accounts.pop(operands[0], "") else (6, "", "no such user")
            case "install":
                self.path(words[-1]).mkdir(parents=True)
                self.access[words[-1]] = f"{int(words[words.index('-m') + 1], 8):o} {words[words.index('-o') + 1]} {words[words.index('-g') + 1]}"
                return 0, "", ""
            case "chown" | "chmod" | "chgrp":
                return self._change_access(name, *operands)
            case "rm":
                for path in operands:
                    shutil.rmtree(self.path(path)) if self.path(path).is_dir() else self.path(path).unlink(missing_ok=True)
                    self.access = {known: access for known, access in self.access.items() if self.path(known).exists()}
                return 0, "", ""
            case "find":
                places = [self.path(word) for word in operands[:-1]]  # the last one is the value of -maxdepth
                found = [path for place in places for path in [place, *(sorted(place.iterdir()) if place.is_dir() else ())] if path.exists()]
                return int(not all(place.exists() for place in places)), "".join(f"/{path.relative_to(self.root)}\n" for path in found), ""
            case "ls":
                return 0, "".join(f"{path.name}\n" for path in self.path(operands[0]).iterdir()), ""
            case "rmdir":
                folder = self.path(operands[0])
                if not folder.is_dir() or any(folder.iterdir()):
                    return 1, "", "rmdir: failed to remove"
                folder.rmdir()
                self.access.pop(operands[0], None)
                return 0, "", ""
            case "journalctl":
                units = [words[number + 1] for number, word in enumerate(words) if word == "-u"]
                return 0, "\n".join(line for unit in units for line in self.services.get(unit, Service()).journal), ""
            case "systemctl":
                return self._systemctl(operands[0], operands[1:])
            case "systemd-run":
                return self._transient(words)
            case "du":
                found = [path for path in self.path(operands[0]).rglob("*") if path.is_file()]
                return (0, f"{sum(path.stat().st_size for path in found)}\t{operands[0]}\n", "") if found else (1, "", "du: cannot access")
        raise AssertionError(f"this host has no {name}")

    def _change_access(self, name: str, wanted: str, path: str) -> Said:
        if not self.path(path).exists():
            return 1, "", f"{name}: cannot access {path}"
        mode, user, group = self.accessed(path).split()
        if name == "chmod":
            mode = f"{int(wanted, 8):o}"
        else:
            new = wanted.split(":") if ":" in wanted else [user, wanted]
            if set(new) - set(self.accounts):
                return 1, "", f"{name}: invalid user or group {wanted}"
            user, group = new
        self.access[path] = f"{mode} {user} {group}"
        return 0, "", ""

    # -- systemd

    def _wanted(self, unit: str) -> Path:
        """The link by which a unit is started at boot."""
        return self.path(f"{TIMERS}/{unit}" if unit.endswith(".timer") else f"{WANTS}/{unit}")

    def _systemctl(self, verb: str, units: list[str]) -> Said:
        match verb:
            case "daemon-reload":
                for unit, service in self.services.items():
                    service.text = self._unit_text(unit)
                return 0, "", ""
            case "show":
                return 0, "\n".join(map(self._shown, units)), ""
            case "is-enabled":
                there = [self._wanted(unit).exists() for unit in units]
                return int(not any(there)), "".join("enabled\n" if one else "disabled\n" for one in there), ""
            case "enable":
                if not all(self._unit_text(unit) for unit in units):
                    return 1, "", "Unit file does not exist."
                for unit in units:
                    self._wanted(unit).parent.mkdir(exist_ok=True)
                    self._wanted(unit).write_text("link")
                return 0, "", ""
            case "disable":
                if not all(self._unit_text(unit) for unit in units):
                    return 1, "", "Unit file does not exist."
                for unit in units:
                    self._wanted(unit).unlink(missing_ok=True)
                return 0, "", ""
            case "start" | "stop" | "restart":
                return max(self._change_state(verb, unit) for unit in units), "", ""
            case "reset-failed":
                return 0, "", ""
        raise AssertionError(f"systemctl {verb} is not simulated")

    def _shown(self, unit: str) -> str:
        service, enabled = self.services.get(unit, Service()), "enabled" if self._wanted(unit).exists() else "disabled"
        known = {"ActiveState": service.active, "SubState": service.sub, "MainPID": service.pid, "UnitFileState": enabled, "Result": service.result}
        return "".join(f"{name}={value}\n" for name, value in known.items())

    def _transient(self, words: list[str]) -> Said:
        """A unit that lasts as long as its program, which is waited for: it ends what it conflicts with, and its last command is run however it ends."""
        options, program = words[: words.index("--")], words[words.index("--") + 1 :]
        properties = [word.removeprefix("--property=") for word in options if word.startswith("--property=")]
        for conflict in (value.removeprefix("Conflicts=") for value in properties if value.startswith("Conflicts=")):
            self._change_state("stop", conflict)
        code, out, err = self.program(program)
        for last in (value.removeprefix("ExecStopPost=+") for value in properties if value.startswith("ExecStopPost=")):
            verb, unit = [word for word in last.split()[1:] if not word.startswith("-")]
            self._change_state(verb, unit)
        return code, out, err

    def program(self, words: list[str]) -> Said:
        """A program that a transient unit runs: distribution's garbage collection, of `self.unnamed`."""
        program, verb, config = words
        writers = [item for item in self.services.values() if item.pid and "readonly" not in item.config["storage"].get("maintenance", {})]
        assert self.path(program).exists() and verb == "garbage-collect" and not writers, "a blob that is pushed meanwhile may be deleted"
        storage = json.loads(self.path(config).read_bytes())["storage"]["filesystem"]["rootdirectory"]
        for name in self.unnamed:
            self.path(f"{storage}/{name}").unlink(missing_ok=True)
        return self.ends_with, "", ""

    def _change_state(self, verb: str, unit: str) -> int:
        if verb == "stop" or (verb == "restart" and unit in self.services):
            service = self.services.get(unit, Service())
            service.active, service.sub, service.pid, service.listens = "inactive", "dead", 0, ""
        return self._start(unit) if verb != "stop" else 0

    def _unit_text(self, unit: str) -> str:
        """The unit file on disk with its drop-ins; "" if there is none."""
        template = self.path(f"{UNITS}/{re.sub('@.*[.]', '@.', unit)}")
        dropins = sorted(self.path(f"{UNITS}/{unit}.d").glob("*.conf"))
        return "".join(path.read_text() for path in [template, *dropins]) if template.exists() else ""

    def _start(self, unit: str) -> int:
        if unit not in self.services or not self.services[unit].text:
            if not (text := self._unit_text(unit)):
                return 5
            self.services[unit] = Service(text=text, starts=self.services.get(unit, Service()).starts)
        service = self.services[unit]
        if service.pid:
            return 0
        service.starts += 1
        if unit.endswith(".timer"):
            service.active, service.sub = "active", "waiting"
            return 0
        try:
            self._execute(service, unit.partition("@")[2].partition(".")[0])
        except _CannotStart as error:
            service.active, service.sub = "activating", "auto-restart"
            service.journal.append(str(error))
        else:
            self._pids += 1
            service.active, service.sub, service.pid = "active", "running", self._pids
        return 0

    def _execute(self, service: Service, instance: str) -> None:
        """What distribution does as it starts."""
        setting = dict(re.findall(r"(?m)^([A-Za-z]+)=(.*)$", service.text.replace("%i", instance)))
        if not self.path(setting["AssertPathExists"]).exists():
            raise _CannotStart("Assertion failed")
        user = setting["User"]
        if user not in self.accounts:
            raise _CannotStart("status=217/USER")
        program, _, config = setting["ExecStart"].split()
        service.read = {"unit": sha256_bytes(service.text.encode())}

        def read(path: str) -> bytes:
            mode, owner, group = self.accessed(path).split()
            bits = int(mode, 8) >> (6 if owner == user else 3 if group == user else 0)
            if not self.path(path).is_file() or not bits & 4:
                raise _CannotStart(f"open {path}: no such file, or permission denied")
            content = self.path(path).read_bytes()
            service.read[path] = sha256_bytes(content)
            return content

        read(program)
        service.config = json.loads(read(config))
        service.certificate = read(service.config["http"]["tls"]["certificate"])
        if users := service.config.get("auth", {}).get("htpasswd"):
            read(users["path"])
            del service.read[users["path"]]  # it is read again whenever it has changed
        storage = service.config["storage"]["filesystem"]["rootdirectory"]
        if "readonly" not in service.config["storage"].get("maintenance", {}) and setting.get("ReadWritePaths") != storage:
            raise _CannotStart(f"mkdir {storage}: read-only file system")
        if not self.path(storage).is_dir() or self.accessed(storage).split()[1] != user:
            raise _CannotStart(f"{storage}: permission denied")
        place = service.config["http"]["addr"]
        taken = [socket.rpartition(":") for socket in [*self.sockets, *(item.listens for item in self.services.values())]]
        if any(port == place.rpartition(":")[2] and where in (place.rpartition(":")[0], "0.0.0.0", "*") for where, _, port in taken):
            raise _CannotStart(f"listen tcp {place}: bind: address already in use")
        service.listens = place
