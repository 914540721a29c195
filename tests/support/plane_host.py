"""A site's management host whose cluster is the component tests' API server: kubectl is real, and what needs kubelets and controllers is played here.

A Deployment becomes ready when its rollout is waited for, unless its new image is one that does not start. The Job that changes Compass' database does so at
once; what Compass' pods would say of it, they say from here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckp.kits.errors import CkpError
from ckp.kits.processes import Finished
from ckp.rules.schemas import HEAD
from ckp.site.upgrade.database import COMPASS, JOB
from tests.simulators.site_host import Killed
from tests.support.control_plane import TestControlPlane

CHANGING = ("apply", "patch", "delete", "scale", "create")
SYSTEM = "--namespace=ckp-system"


@dataclass
class PlaneHost:
    """As `SiteHost` has it, but for files.

    Args:
        broken: images that do not start.
    """

    plane: TestControlPlane
    name: str = "m1"
    address: str = "192.0.2.10"
    broken: set[str] = field(default_factory=set)
    version: str = "0.2.0"
    schema: str = "0002"
    changes: list[str] = field(default_factory=list)
    """What has changed the cluster, in order."""
    kill_after: int | None = None
    """The number of the change after which the caller is killed, from 0."""
    _job: dict[str, Any] = field(default_factory=dict)

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        words = [str(word) for word in argv]
        assert words[0] == "kubectl" and isinstance(stdin, str | None)
        arguments = words[4:]
        out = self._kubectl(arguments, stdin)
        if arguments[0] in CHANGING:
            self.changes.append(" ".join(arguments[:3]))
            if self.kill_after is not None and len(self.changes) > self.kill_after:
                raise Killed
        return Finished(tuple(words), 0, out, "", 0.0)

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None]) -> int:
        raise AssertionError(f"nothing is streamed here: {argv}")

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        raise AssertionError(f"no file is written here: {target}")

    def pull(self, source: str) -> bytes:
        raise AssertionError(f"no file is read here: {source}")

    # -- kubectl

    def _kubectl(self, arguments: list[str], stdin: str | None) -> str:
        if f"job/{JOB}" in arguments or (arguments[0] == "create" and stdin is not None and json.loads(stdin)["kind"] == "Job"):
            return self._schema_job(arguments, stdin)
        if arguments[0] == "exec":
            compass = json.loads(self.plane.kubectl("get", "deployment", COMPASS, SYSTEM, "-o", "json"))
            if compass["spec"].get("replicas") == 0 or self._image(compass) in self.broken:
                raise CkpError("kubectl exec failed", details="no pod of it runs")
            return self.version if "ckp.__version__" in arguments[-1] else self.schema
        if arguments[:2] == ["rollout", "status"]:
            self._roll(arguments[2], arguments[3])
            arguments = [*arguments[:4], "--timeout=2s"]
        return self.plane.kubectl(*arguments, stdin=stdin)

    def _roll(self, name: str, namespace: str) -> None:
        """As the controllers of Deployments and ReplicaSets leave it when all pods are ready."""
        found = json.loads(self.plane.kubectl("get", name, namespace, "-o", "json"))
        ready = 0 if self._image(found) in self.broken else found["spec"].get("replicas", 1)
        count = {"replicas": ready, "updatedReplicas": ready, "readyReplicas": ready, "availableReplicas": ready}
        status = json.dumps({"status": {"observedGeneration": found["metadata"]["generation"], **count}})
        self.plane.kubectl("patch", name, namespace, "--subresource=status", "--type=merge", "-p", status)

    @staticmethod
    def _image(deployment: dict[str, Any]) -> str:
        return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])

    def _schema_job(self, arguments: list[str], stdin: str | None) -> str:
        match arguments[0]:
            case "create":
                self.plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=stdin)  # it is one that the API server takes
                [container] = json.loads(stdin or "")["spec"]["template"]["spec"]["containers"]
                words = container["args"]
                self._job = {"status": {"succeeded": 1}}
                self.schema = words[2] if words[1] == "--schema-back" else HEAD
            case "delete":
                self._job = {}
        return json.dumps(self._job)
