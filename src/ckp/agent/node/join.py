"""Joining: from an installed host to a node. Bootstrap files, `kubeadm join`, and the check that it worked."""

from __future__ import annotations

import os
import re
import socket
from typing import Callable, Sequence

from ckp.agent.journal import Journal
from ckp.agent.messages import JoinFile, Membership
from ckp.agent.system.prepare import PATCHES_DIR, HostDecisions
from ckp.hostkit.errors import InvalidInput
from ckp.hostkit.files import atomic_write, read_text, remove
from ckp.hostkit.logs import log
from ckp.hostkit.processes import run
from ckp.hostkit.waits import wait_for

KUBELET_CONF = "/etc/kubernetes/kubelet.conf"
BOOTSTRAP_CONF = "/etc/kubernetes/bootstrap-kubelet.conf"
NODE_CERTIFICATE = "/var/lib/kubelet/pki/kubelet-client-current.pem"
COMMAND_FILE = "/run/ckp-agent-command"
SUCCESS = "/run/cluster-api/bootstrap-success.complete"
JOIN_SECONDS = 300.0
CHECK_SECONDS = 120.0
COMMAND_SECONDS = 600.0
FORBIDDEN_PLACES = ("/proc/", "/sys/", "/dev/", "/var/lib/ckp-agent/", "/etc/ckp-agent/", "/usr/lib/ckp-agent/", "/usr/share/ckp-agent/")


def check_path(path: str) -> str:
    """Check the path of a bootstrap file: absolute, normalised, and outside of FORBIDDEN_PLACES. InvalidInput otherwise."""
    if not path.startswith("/") or os.path.normpath(path) != path or path.startswith("//") or "\0" in path:
        raise InvalidInput(f"the path of the bootstrap file {path!r} is not a normalised absolute path", permanent=True)
    if any(path.startswith(place) for place in FORBIDDEN_PLACES):
        raise InvalidInput(f"the bootstrap file {path!r} is in a folder where none is allowed", permanent=True)
    return path


def check_mode(text: str) -> int:
    """A file mode such as 0600. InvalidInput for anything else, set-uid bits included."""
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise InvalidInput(f"{text!r} is not a file mode such as 0600", permanent=True)
    return int(text, 8)


def write_files(journal: Journal, files: tuple[JoinFile, ...]) -> None:
    """Write the bootstrap files. All paths are checked before the first is written."""
    checked = [(check_path(file.path), file.content, check_mode(file.mode)) for file in files]
    for path, content, mode in checked:
        if path.startswith(("/run/", "/etc/kubernetes/")):
            journal.add_file(path)  # the host has no files of its own there
            atomic_write(path, content, mode=mode)
        else:
            journal.replace_file(path, content, mode=mode)


def node_of_certificate() -> str:
    """The node name in the kubelet's client certificate; "" if there is none."""
    if not os.path.exists(NODE_CERTIFICATE):
        return ""
    result = run(["openssl", "x509", "-noout", "-subject", "-nameopt", "RFC2253", "-in", NODE_CERTIFICATE], timeout=20, check=False)
    match = re.search(r"CN=system:node:([^,+\s]+)", result.stdout)
    return match.group(1) if match else ""


def is_node() -> bool:
    """Whether this host has joined some cluster."""
    return os.path.exists(KUBELET_CONF)


def check_files(files: Sequence[JoinFile]) -> None:
    """Check paths and modes of all bootstrap files, before any of them is written. Raises InvalidInput."""
    for file in files:
        check_path(file.path)
        check_mode(file.mode)


def join(journal: Journal, membership: Membership, decisions: HostDecisions, cancelled: Callable[[], bool]) -> str:
    """Make this host a node; returns a note. Idempotent: a completed join is not repeated, and an interrupted one is reset first.

    Raises:
        AgentError: kubeadm or a command failed, or the bootstrap files are invalid.
        Cancelled: `cancelled` returned True.
    """
    if is_node() and node_of_certificate() == membership.node_name:
        remove(BOOTSTRAP_CONF)
        _after_join(journal, membership)
        _finish(journal, membership)
        return "kubeadm join succeeded before"
    check_files(membership.files)
    config = next((file for file in membership.files if file.path == membership.join_config), None)
    if config is None:
        raise InvalidInput(f"the join configuration {membership.join_config} is not among the bootstrap files", permanent=True)
    if is_node() or os.path.exists(BOOTSTRAP_CONF):
        log("resetting an interrupted kubeadm join")
        run(["kubeadm", "reset", "-f", "--cleanup-tmp-dir"], timeout=180, check=False)
    write_files(journal, membership.files)
    note = (
        "" if PATCHES_DIR in config.content else f"the join configuration has no patches.directory {PATCHES_DIR}: this host's kubelet settings are not applied"
    )
    for command in membership.pre_commands:
        _command(journal, command, "preKubeadmCommands")
    argv = ["kubeadm", "join", "--config", membership.join_config]
    ignored = decisions.ignored_preflight()
    if ignored:
        argv.append(f"--ignore-preflight-errors={','.join(ignored)}")
    run(
        argv,
        timeout=JOIN_SECONDS,
        what="kubeadm join",
        resolution="see kubeadm's output; journalctl -u kubelet shows the node's side",
        reason="JoinFailed",
        cancelled=cancelled,
    )
    _after_join(journal, membership)
    _finish(journal, membership)
    return note


def _after_join(journal: Journal, membership: Membership) -> None:
    """The commands after the join. Each runs until it has succeeded once: after a failure, the next attempt resumes with the one that failed."""
    for number, command in enumerate(membership.post_commands):
        if number >= int(journal.notes.get("post_commands", 0)):
            _command(journal, command, "postKubeadmCommands")
            journal.note("post_commands", number + 1)


def _command(journal: Journal, command: str, source: str) -> None:
    """Run a command of the KubeadmConfig: shell code, by Cluster API's contract. It is passed in a file, since every user can read arguments."""
    journal.add_file(COMMAND_FILE)
    atomic_write(COMMAND_FILE, command + "\n", mode=0o600)
    try:
        run(["/bin/sh", COMMAND_FILE], timeout=COMMAND_SECONDS, proxied=True, what=f"a command of {source}", reason="BootstrapCommandFailed")
    finally:
        remove(COMMAND_FILE)


def _finish(journal: Journal, membership: Membership) -> None:
    """Write Cluster API's sentinel file of success, and delete the join configuration with its token."""
    journal.add_file(SUCCESS)
    atomic_write(SUCCESS, "success\n")
    remove(membership.join_config)


def kubelet_health() -> str:
    """Why the kubelet is unhealthy; "" if its health endpoint answers ok."""
    try:
        with socket.create_connection(("127.0.0.1", 10248), timeout=3) as link:
            link.settimeout(3)
            link.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            answer = b""
            while True:
                part = link.recv(4096)
                if not part:
                    break
                answer += part
                if len(answer) > 65536:
                    break
    except OSError as error:
        return f"the kubelet's health endpoint does not answer: {error.strerror or error}"
    return "" if answer.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")) else "the kubelet's health endpoint reports that it is unhealthy"


def check(membership: Membership, cancelled: Callable[[], bool]) -> str:
    """Wait until the host is a node: it has its certificate, and its kubelet runs and is healthy. Raises AgentError, Cancelled."""
    if not os.path.exists(SUCCESS):
        atomic_write(SUCCESS, "success\n")  # /run is empty after a restart of the host

    def missing() -> str:
        if not is_node():
            return f"{KUBELET_CONF} is missing"
        found = node_of_certificate()
        if found != membership.node_name:
            return f"the node's certificate is for {found or 'no node'}, and must be for {membership.node_name}"
        state = run(["systemctl", "is-active", "kubelet"], timeout=20, check=False).stdout.strip()
        return kubelet_health() if state == "active" else f"the kubelet is {state}"

    wait_for(
        missing,
        timeout=CHECK_SECONDS,
        every=1.0,
        what="the kubelet of the new node is healthy",
        resolution="journalctl -u kubelet",
        reason="KubeletUnhealthy",
        cancelled=cancelled,
    )
    return f"node {membership.node_name}"


def kubelet_log_tail() -> str:
    """The last lines of the kubelet's log, for errors."""
    return (
        run(["journalctl", "-u", "kubelet", "-n", "15", "--no-pager", "-o", "cat"], timeout=20, check=False).stdout or read_text("/var/log/kubelet.log")[-2000:]
    )
