"""Reads what a backup takes from a management host, and prints it. Sent there as the text of `python3 -c`: Python 3.9 and its standard library.

Nothing is written to the host's disks. The output has a line for each piece, `D ` and the base64 of its deflated bytes, and a last one, `E ` and JSON: size and
SHA-256 of the whole, and what was seen of it. Lines of other forms are what programs said; they are for people. The only argument is the request, as JSON:
it names files and objects, and holds no secret. The client of etcd serves backups of clusters, too, where they are made.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import socket
import ssl
import subprocess
import sys
import tarfile
import urllib.parse
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

Request = dict[str, Any]
Tls = tuple[bytes, bytes, bytes]
"""CA, certificate and key, as PEM."""
PIECE = 1 << 18
SECONDS = 60.0
"""Of silence, after which a connection is given up."""
PARTIAL_CHAIN = 0x80000
"""X509_V_FLAG_PARTIAL_CHAIN of OpenSSL: the CA may be one that another one has signed. The ssl module has a name for it since 3.10."""
DIGEST_SIZE = 32

SQLITE = """
import hashlib, os, sqlite3, sys
os.umask(0o077)
path, target = sys.argv[1], "/tmp/ckp-backup.db"
def remove():
    for name in (target, target + "-journal", target + "-wal", target + "-shm"):
        if os.path.exists(name): os.unlink(name)
remove()
try:
    source, copy = sqlite3.connect("file:" + path + "?mode=ro", uri=True), sqlite3.connect(target)
    source.backup(copy)
    copy.execute("PRAGMA journal_mode=DELETE")
    copy.close()
    digest = hashlib.sha256()
    with open(target, "rb") as file:
        for piece in iter(lambda: file.read(1 << 18), b""):
            digest.update(piece)
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.write(digest.digest())
finally:
    remove()
"""
"""Runs in Compass' pod: SQLite's online backup, which is one state of the database whatever is written meanwhile, and its SHA-256 behind it."""


class Sink(io.RawIOBase):
    """Takes bytes and prints them in pieces."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self.size, self.digest = 0, hashlib.sha256()
        self._out, self._kept = out, bytearray()

    def writable(self) -> bool:
        """Whether it takes bytes: it does."""
        return True

    def write(self, data: Any) -> int:
        """Take some bytes."""
        self._kept += data
        while len(self._kept) >= PIECE:
            self._print(bytes(self._kept[:PIECE]))
            del self._kept[:PIECE]
        return len(data)

    def finish(self, about: dict[str, Any]) -> None:
        """Print what is left, and the last line."""
        if self._kept:
            self._print(bytes(self._kept))
        self._out.write("E " + json.dumps({"size": self.size, "sha256": self.digest.hexdigest(), **about}) + "\n")
        self._out.flush()

    def _print(self, piece: bytes) -> None:
        self.size += len(piece)
        self.digest.update(piece)
        self._out.write("D " + base64.b64encode(zlib.compress(piece, 1)).decode() + "\n")


class Trailed:
    """Passes bytes on, but for the last 32, which are the SHA-256 of those before: whatever broke on the way is noticed.

    Args:
        keep: pass that digest on as well, once it is right.
    """

    def __init__(self, sink: Any, keep: bool) -> None:
        self._sink, self._keep = sink, keep
        self._digest, self._last = hashlib.sha256(), b""

    def write(self, data: bytes) -> None:
        """Take some bytes."""
        whole = self._last + data
        passed, self._last = whole[:-DIGEST_SIZE], whole[-DIGEST_SIZE:]
        self._digest.update(passed)
        self._sink.write(passed)

    def finish(self, what: str) -> None:
        """ValueError if the digest is another one."""
        if self._digest.digest() != self._last:
            raise ValueError(f"{what} ended before all of it came")
        if self._keep:
            self._sink.write(self._last)


class Connection(http.client.HTTPSConnection):
    """To an address, whose certificate is to have another name."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext, name: str) -> None:
        super().__init__(address, port, timeout=SECONDS, context=context)
        self._address, self._tls, self._name = (address, port), context, name

    def connect(self) -> None:
        """Connect."""
        self.sock = self._tls.wrap_socket(socket.create_connection(self._address, SECONDS), server_hostname=self._name)


class Etcd:
    """A member of etcd, by its JSON gateway.

    Args:
        tls: None without TLS.
        name: what its certificate is to have.
    """

    def __init__(self, url: str, tls: Tls | None, name: str) -> None:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port or 2379
        if tls is None:
            self._connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
            return
        context = ssl.create_default_context(cadata=tls[0].decode())
        context.verify_flags |= PARTIAL_CHAIN
        memory = os.memfd_create("etcd-client", os.MFD_CLOEXEC)  # a key from a Secret goes to no file system
        try:
            with os.fdopen(os.dup(memory), "wb") as file:
                file.write(tls[1].rstrip() + b"\n" + tls[2])
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)
        self._connection = Connection(host, port, context, name or host)

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question."""
        answer = self._post(path, body)
        said: dict[str, Any] = json.loads(answer.read())
        if answer.status != 200:
            raise ValueError(f"etcd answered {path} with {answer.status}: {said.get('message') or said.get('error')}")
        return said

    def snapshot(self, sink: Any) -> None:
        """Its database as it is at this moment."""
        answer = self._post("/v3/maintenance/snapshot", {})
        if answer.status != 200:
            raise ValueError(f"etcd answered a snapshot with {answer.status}: {answer.read(4096)!r}")
        whole = Trailed(sink, True)
        for line in answer:
            if line.strip():
                said = json.loads(line)
                if "result" not in said:
                    raise ValueError(f"etcd broke off: {said.get('error')}")
                whole.write(base64.b64decode(said["result"].get("blob", "")))
        whole.finish("etcd's snapshot")

    def _post(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return self._connection.getresponse()


def etcd(request: Request, sink: Sink) -> dict[str, Any]:
    """A snapshot of an etcd cluster, by one of its members. A read with a quorum comes first, so nothing is missing that was acknowledged before."""
    tls: Tls | None = None
    if request.get("secrets"):
        authority, client = (secret(request, name) for name in request["secrets"])
        tls = (authority["tls.crt"], client["tls.crt"], client["tls.key"])
    elif request["files"]:
        ca, certificate, key = (read(path) for path in request["files"])
        tls = (ca, certificate, key)
    return snapshot_of(Etcd(request["url"], tls, request.get("name", "")), sink)


def snapshot_of(member: Etcd, sink: Any) -> dict[str, Any]:
    """The same, of a member that is there already. The sink takes bytes by `write`."""
    read_first = member.ask("/v3/kv/range", {"key": "AA==", "range_end": "AA==", "count_only": True})
    members = member.ask("/v3/cluster/member/list", {})["members"]
    status = member.ask("/v3/maintenance/status", {})
    member.snapshot(sink)
    return {
        "revision": int(read_first["header"]["revision"]),
        "clusterId": f"{int(read_first['header']['cluster_id']):x}",
        "version": status["version"],
        "members": {item.get("name", ""): item.get("peerURLs", []) for item in members},
    }


def secret(request: Request, name: str) -> dict[str, bytes]:
    """The data of a Secret."""
    argv = [*request["kubectl"], "--namespace", request["namespace"], "get", "secret", name, "--output=json"]
    done = subprocess.run(argv, capture_output=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise ValueError(done.stderr.decode(errors="replace").strip())
    found = json.loads(done.stdout)
    return {key: base64.b64decode(value) for key, value in found["data"].items()}


def read(path: str) -> bytes:
    """A file's content."""
    return Path(path).read_bytes()


def sqlite(request: Request, sink: Sink) -> dict[str, Any]:
    """A database of a pod, copied while it is used."""
    return printed([*request["python"], "-c", SQLITE, request["path"]], str(request["path"]), sink)


def postgresql(request: Request, sink: Sink) -> dict[str, Any]:
    """A database that a pod is connected to, as of one moment (ckp.compass.store.copying)."""
    return printed([*request["python"], "-m", "ckp.compass", "--dump"], "Compass' database", sink)


def printed(argv: Sequence[str], what: str, sink: Sink) -> dict[str, Any]:
    """What a program of a pod prints, but for the SHA-256 behind it."""
    copy = Trailed(sink, False)
    # What it says goes to a memory of its own: in our output, it could stand within a line.
    with os.fdopen(os.memfd_create("said", os.MFD_CLOEXEC), "w+b") as said:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=said) as child:
            assert child.stdout is not None
            for piece in iter(lambda: child.stdout.read(PIECE), b""):  # type: ignore[union-attr]
                copy.write(piece)
        said.seek(0)
        if child.returncode:
            raise ValueError(f"copying {what} ended with {child.returncode}: {said.read().decode(errors='replace').strip()}")
    copy.finish(what)
    return {}


def files(request: Request, sink: Sink) -> dict[str, Any]:
    """Files and folders, as a tar with their owners and modes. What is not there is named."""
    there = [path for path in request["paths"] if os.path.lexists(path)]
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in there:
            archive.add(path, arcname=path.lstrip("/"))
    return {"paths": there, "missing": [path for path in request["paths"] if path not in there]}


def file(request: Request, sink: Sink) -> dict[str, Any]:
    """A file as it is."""
    with Path(request["path"]).open("rb") as source:
        for piece in iter(lambda: source.read(PIECE), b""):
            sink.write(piece)
    return {}


ACTIONS: dict[str, Callable[[Request, Sink], dict[str, Any]]] = {"etcd": etcd, "sqlite": sqlite, "postgresql": postgresql, "files": files, "file": file}


def main(argv: Sequence[str], out: TextIO) -> int:
    """Do what the request asks for; the exit code."""
    request = json.loads(argv[0])
    sink = Sink(out)
    try:
        about = ACTIONS[request["do"]](request, sink)
    except (OSError, ValueError, KeyError, ssl.SSLError, http.client.HTTPException, subprocess.SubprocessError, zlib.error) as error:
        out.write(f"{type(error).__name__}: {error}\n")
        return 1
    sink.finish(about)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout))
