"""etcd's programs for backups, on snapshots that are JSON: `etcdutl snapshot status|restore`, and an `etcd` that answers as much as a proof asks.

Honest about: the digest behind a snapshot, which `restore` checks; a data folder that must not be there yet; a bumped revision; a member that serves what
its data folder holds. `tests/component/test_cluster_backup.py` asks the same of the real ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckp.backups.scratch import Programs

KUBE_SYSTEM = "/registry/namespaces/kube-system"


def snapshot_of(revision: int, keys: dict[str, str]) -> bytes:
    """A database as the simulated programs read it, without the digest that etcd sends behind it."""
    return json.dumps({"revision": revision, "keys": {KUBE_SYSTEM: "k8s", **keys}}).encode()


def install(folder: Path) -> Programs:
    """Programs in a folder. They import nothing but the standard library, so that they start at once."""
    from ckp.backups.scratch import Programs

    made = []
    for name in ("etcd", "etcdutl"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__).resolve()} {name} "$@"\n')
        path.chmod(0o755)
        made.append(path)
    return Programs(*made)


def _options(words: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))


def _etcdutl(words: list[str]) -> int:
    do, path, options = words[1], Path(words[2]), _options(words)
    whole = path.read_bytes()
    content, digest = whole[:-32], whole[-32:]
    if hashlib.sha256(content).digest() != digest:
        sys.stderr.write("Error: expected sha256 does not match\n")
        return 1
    found = json.loads(content)
    if do == "status":
        print(json.dumps({"revision": found["revision"], "totalKey": len(found["keys"])}))
        return 0
    data = Path(options["data-dir"])
    if data.exists():
        sys.stderr.write(f'Error: data-dir "{data}" not empty or could not be read\n')
        return 1
    (data / "member" / "snap").mkdir(parents=True, mode=0o700)
    found["revision"] += int(options.get("bump-revision", 0))
    found["made"] = {key: value for key, value in options.items() if key != "data-dir"} | {"compacted": "mark-compacted" in options}
    (data / "member" / "snap" / "db").write_text(json.dumps(found))
    return 0


def read_member(data: Path) -> dict[str, Any]:
    """What a data folder holds: `revision`, `keys`, and how it was `made`."""
    found: dict[str, Any] = json.loads((data / "member" / "snap" / "db").read_text())
    return found


def _etcd(words: list[str]) -> int:
    options = _options(words)
    found = read_member(Path(options["data-dir"]))

    class Handler(BaseHTTPRequestHandler):
        def address_string(self) -> str:
            return "unix"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = base64.b64decode(asked["key"]).decode()
            chosen = list(found["keys"]) if key == "\0" else [key] if key in found["keys"] else []
            body = json.dumps({"header": {"revision": str(found["revision"])}, "count": str(len(chosen))}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.UnixStreamServer(options["listen-client-urls"].removeprefix("unix://"), Handler) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit({"etcd": _etcd, "etcdutl": _etcdutl}[sys.argv[1]](sys.argv[2:]))
