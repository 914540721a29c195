"""The cluster that this host is a master of, as its administrator sees it."""

from __future__ import annotations

import os
import re

from ckp.hostkit.files import read_text
from ckp.hostkit.processes import run

ADMIN = "/etc/kubernetes/admin.conf"
PKI = "/etc/kubernetes/pki"
RUN_DIR = "/run/ckp-standalone"


def kubectl(*arguments: str, stdin: str | None = None, timeout: float = 60, check: bool = True, what: str = "", kubeconfig: str = ADMIN) -> str:
    """Run kubectl as the cluster's administrator, or by another kubeconfig; returns its output. Raises ProcessFailed."""
    argv = ["kubectl", "--kubeconfig", kubeconfig, "--cache-dir", f"{RUN_DIR}/kube-cache", *arguments]
    return run(argv, timeout=timeout, stdin=stdin.encode() if stdin is not None else None, check=check, what=what or f"kubectl {arguments[0]}").stdout


def api_ready() -> str:
    """Why the API server is not ready; "" if it is."""
    if not os.path.exists(ADMIN):
        return f"{ADMIN} is missing"
    answer = run(["kubectl", "--kubeconfig", ADMIN, "get", "--raw", "/readyz", "--request-timeout=5s"], timeout=20, check=False)
    return "" if answer.stdout.strip() == "ok" else (answer.tail() or "no answer")


def endpoint() -> str:
    """`host:port` of the cluster's API server, as all of its nodes reach it; "" on a host that is no master."""
    match = re.search(r"^\s*server:\s*https://(\S+)\s*$", read_text(ADMIN), re.M)
    return match.group(1) if match else ""
