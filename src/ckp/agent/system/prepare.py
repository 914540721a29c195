"""Prepares the operating system for a node. Decisions follow from the facts of the host; every change can be undone.

`/etc/ckp-agent/host.json` (usually absent) may hold overrides for special hosts such as the lab's, which share a disk:

    {"kubelet": {"evictionHard": {"nodefs.available": "1Gi"}, "imageGCHighThresholdPercent": 100}}

`kubelet` is merged into the node's KubeletConfiguration.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Sequence

from ckp.agent.journal import Journal
from ckp.agent.system import facts, firewall, kubelet_flags, registry_login, swap, units
from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hostkit.files import read_text
from ckp.hostkit.locations import CONFIG_DIR
from ckp.hostkit.processes import have, run

HOST_JSON = CONFIG_DIR + "/host.json"
PROC_SYS = "/proc/sys"
SYSCTL_FILE = "/etc/sysctl.d/99-ckp.conf"
MODULES_FILE = "/etc/modules-load.d/ckp.conf"
CONTAINERD_CONFIG = "/etc/containerd/config.toml"
CERTS_D = "/etc/containerd/certs.d"
CRICTL_CONFIG = "/etc/crictl.yaml"
PATCHES_DIR = "/etc/kubernetes/ckp-patches"
CONTAINERD_SOCKET = "unix:///run/containerd/containerd.sock"
MODULES = ("overlay", "br_netfilter")
SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.bridge.bridge-nf-call-iptables": "1",
    "net.bridge.bridge-nf-call-ip6tables": "1",
}
CHANGED_BY_OTHERS = (
    "net.ipv4.conf.all.accept_redirects",  # the kernel, whenever ip_forward changes (net/ipv4/devinet.c, inet_forward_change)
    "net.ipv4.conf.all.rp_filter",  # this and the following: Cilium
    "net.ipv4.fib_multipath_use_neigh",
    "net.core.bpf_jit_enable",
    "kernel.unprivileged_bpf_disabled",
    "kernel.timer_migration",
    "vm.overcommit_memory",  # this and the following: the kubelet
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
)
"""Settings that the cluster's programs change on a node. Their original values are recorded, and restored at the reset (after SYSCTLS)."""
OPTIONAL_SYSCTLS = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables", "net.ipv6.conf.all.forwarding")


@dataclass(frozen=True)
class HostDecisions:
    """The settings of containerd, kubelet and network that follow from the facts of this host."""

    cgroup: str
    driver: str
    restrict_oom_score_adj: bool
    snapshotter: str
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What differs from a usual host, in sentences."""
        found = []
        if self.cgroup == "v1":
            found.append("cgroup v1: the kubelet is configured to accept it, and kubeadm's check SystemVerification is ignored")
        if self.restrict_oom_score_adj:
            found.append("no CAP_SYS_RESOURCE: containerd restricts oom_score_adj, Cilium runs privileged")
        if self.snapshotter != "overlayfs":
            found.append(f"/var/lib is on an overlay file system: containerd uses the snapshotter {self.snapshotter}")
        if self.overrides:
            found.append(f"{HOST_JSON} overrides: {', '.join(sorted(self.overrides))}")
        return found

    def kubelet(self) -> dict[str, Any]:
        """The fields of KubeletConfiguration that are particular to this host."""
        config: dict[str, Any] = {"cgroupDriver": self.driver}
        if self.cgroup == "v1":
            config["failCgroupV1"] = False
        config.update(self.overrides.get("kubelet", {}))
        return config

    def ignored_preflight(self) -> list[str]:
        """kubeadm's preflight checks that this host can't pass; none on a usual host."""
        return ["SystemVerification"] if self.cgroup == "v1" else []


def overrides(host_json: str = HOST_JSON) -> dict[str, Any]:
    """The overrides for this host; none without the file. InvalidInput if they can't be read."""
    text = read_text(host_json)
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found.get("kubelet", {}), dict):
            raise ValueError("it must be a JSON object, and so must `kubelet` in it")
    except ValueError as error:
        raise InvalidInput(f"{host_json} can't be used: {error}", resolution="fix or remove it") from None
    return found


def decide(host_json: str = HOST_JSON) -> HostDecisions:
    """Decide from the facts of the host. InvalidInput if the overrides can't be read."""
    found = overrides(host_json)
    cgroup = facts.cgroup_version()
    snapshotter = "native" if facts.file_system_of("/var/lib/containerd") in ("overlay", "aufs") else "overlayfs"
    return HostDecisions(cgroup, facts.cgroup_driver(cgroup), not facts.can_lower_oom_score(), snapshotter, found)


def prepare(
    journal: Journal,
    decisions: HostDecisions,
    *,
    sandbox_image: str,
    registry: str,
    registry_ca: str,
    kubelet_args: str,
) -> str:
    """All of the preparation; returns a note for the journal. Idempotent. Raises AgentError."""
    notes = [*kernel(journal), *swap.swap_off(journal), *firewall.open_ports(journal)]
    containerd(journal, decisions, sandbox_image, registry, registry_ca)
    units.write(journal)
    kubelet(journal, decisions, kubelet_args)
    return "; ".join(notes + decisions.notes)


# -- kernel --------------------------------------------------------------------------------------------------------------


def kernel(journal: Journal) -> list[str]:
    """Load modules and turn forwarding on, now and after a restart. Returns notes about what this kernel lacks. Raises AgentError."""
    notes = []
    wanted = []
    for module in MODULES:
        if _built_in(module):
            continue
        if os.path.isdir(f"/sys/module/{module}") and have("modprobe") and run(["modprobe", "-n", module], timeout=60, check=False).code != 0:
            continue  # present, but not as a loadable module: nothing to do, after a restart either
        loaded = run(["modprobe", module], timeout=60, check=False) if have("modprobe") else None
        if loaded is not None and loaded.code == 0:
            wanted.append(module)
        elif _works_without(module):
            notes.append(f"the module {module} can't be loaded, but its function is available")
        else:
            notes.append(f"the module {module} is not available: iptables does not see bridged traffic (Cilium does not need it)")
    if wanted:
        journal.replace_file(MODULES_FILE, "".join(f"{module}\n" for module in wanted))
    _sysctls(journal, notes)
    return notes


def _built_in(module: str) -> bool:
    names = read_text(f"/lib/modules/{os.uname().release}/modules.builtin")
    return f"/{module}.ko" in names


def _works_without(module: str) -> bool:
    if module == "overlay":
        return re.search(r"^nodev\toverlay$", read_text("/proc/filesystems"), re.M) is not None
    return os.path.exists("/proc/sys/net/bridge/bridge-nf-call-iptables")


def _sysctl(name: str) -> str:
    return f"{PROC_SYS}/{name.replace('.', '/')}"


def _sysctls(journal: Journal, notes: list[str]) -> None:
    lines = ["# Written by ckp-agent: a Kubernetes node forwards packets. Removed when the host leaves its cluster."]
    before = dict(journal.notes.get("sysctl", {}))
    for name, value in SYSCTLS.items():
        path = _sysctl(name)
        if not os.path.exists(path):
            if name not in OPTIONAL_SYSCTLS:
                raise AgentError(f"this kernel has no sysctl {name}, which every node needs", reason="KernelUnfit", permanent=True)
            notes.append(f"this kernel has no sysctl {name}")
            continue
        lines.append(f"{name} = {value}")
        before.setdefault(name, read_text(path).strip())
    for name in CHANGED_BY_OTHERS:
        value = read_text(_sysctl(name)).strip()
        if value:
            before.setdefault(name, value)
    journal.note("sysctl", before)
    journal.replace_file(SYSCTL_FILE, "\n".join(lines) + "\n")
    for name, value in SYSCTLS.items():
        path = _sysctl(name)
        if not os.path.exists(path) or read_text(path).strip() == value:
            continue
        try:
            _write_proc(path, value)
        except OSError as error:
            if name in OPTIONAL_SYSCTLS:
                notes.append(f"{name} can't be set: {error.strerror}")
            else:
                raise AgentError(
                    f"{name} can't be set to {value}: {error.strerror}", resolution="make /proc/sys writable for root on this host", reason="KernelUnfit"
                ) from None


def _write_proc(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as stream:
        stream.write(value)


def keep_sysctls(journal: Journal) -> list[str]:
    """On a node: set those of SYSCTLS again that differ, as after a restart of a host whose owner sets them in a later file; returns which.

    Raises:
        AgentError: one that every node needs can't be set.
    """
    if "sysctl" not in journal.notes:
        return []
    found = []
    for name, value in SYSCTLS.items():
        path = _sysctl(name)
        if name in OPTIONAL_SYSCTLS or read_text(path).strip() == value:
            continue
        try:
            _write_proc(path, value)
        except OSError as error:
            raise AgentError(f"{name} can't be set to {value}: {error.strerror}", reason="KernelUnfit") from None
        found.append(name)
    return found


def restore_sysctls(journal: Journal) -> None:
    """Restore the recorded values, as far as the kernel accepts them."""
    for name, value in journal.notes.get("sysctl", {}).items():
        path = _sysctl(name)
        try:
            if read_text(path).strip() != value:
                _write_proc(path, value)
        except OSError:
            pass


REGISTRY_LOGIN_MARK = "\n  # How to get tokens of the registry.\n"
"""Comes before the last part of containerd's configuration, where there is one."""

# -- containerd ----------------------------------------------------------------------------------------------------------


def containerd_config(decisions: HostDecisions, sandbox_image: str) -> str:
    """/etc/containerd/config.toml for containerd 1.7."""

    def flag(value: bool) -> str:
        return "true" if value else "false"

    return f"""# Written by ckp-agent for this host. When the host leaves its cluster, its own file is restored.
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  restrict_oom_score_adj = {flag(decisions.restrict_oom_score_adj)}
  max_concurrent_downloads = 6

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{decisions.snapshotter}"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = {flag(decisions.driver == "systemd")}

  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{CERTS_D}"
"""


def registry_host(registry: str) -> str:
    """host:port of a registry reference, without the path. InvalidInput if it is malformed."""
    host = registry.split("/", 1)[0]
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?", host) and not re.fullmatch(r"\[[0-9a-fA-F:]+\](:[0-9]{1,5})?", host):
        raise InvalidInput(f"{registry!r} does not begin with the host of a registry")
    return host


def check_image(image: str) -> str:
    """Check an image reference, which is written into a TOML string. InvalidInput if it has other characters than those of a reference."""
    if not re.fullmatch(r"[A-Za-z0-9._:/@\[\]-]+", image):
        raise InvalidInput(f"{image!r} is not an image reference")
    return image


def containerd(journal: Journal, decisions: HostDecisions, sandbox_image: str, registry: str, registry_ca: str) -> None:
    """Write containerd's configuration, the registry's CA, and crictl's configuration. Raises InvalidInput."""
    host = registry_host(registry)
    config = with_registry_login(containerd_config(decisions, check_image(sandbox_image)), host)
    journal.replace_file(CONTAINERD_CONFIG, config, mode=mode_of(config))
    registry_access(journal, registry, registry_ca)
    journal.replace_file(CRICTL_CONFIG, f"runtime-endpoint: {CONTAINERD_SOCKET}\nimage-endpoint: {CONTAINERD_SOCKET}\ntimeout: 10\n")


def registry_access(journal: Journal, registry: str, registry_ca: str) -> bool:
    """Write how containerd reaches the registry, and logs in there; it reads this at each pull. Returns whether something changed. Raises InvalidInput."""
    host = registry_host(registry)
    lines = [f'server = "https://{host}"', "", f'[host."https://{host}"]', '  capabilities = ["pull", "resolve"]']
    changed = False
    if registry_ca:
        changed = journal.replace_file(f"{CERTS_D}/{host}/ca.crt", registry_ca)
        lines.append(f'  ca = "{CERTS_D}/{host}/ca.crt"')
    basic = registry_login.basic_for(host)
    if basic:
        # containerd sends it to this host only: Go's client leaves Authorization behind where a registry redirects to another one.
        lines += [f'[host."https://{host}".header]', f'  Authorization = "Basic {check_basic(basic)}"']
    mode = 0o600 if basic else 0o644
    return journal.replace_file(f"{CERTS_D}/{host}/hosts.toml", "\n".join(lines) + "\n", mode=mode) or changed


def with_registry_login(config: str, host: str) -> str:
    """containerd's configuration with the login of a registry that gives tokens for it, or without one.

    containerd asks for tokens with a login of its configuration only, which it reads when it starts (pkg/cri/server/image_pull.go at v1.7.28). A header
    of hosts.toml, which is enough for all other registries, goes to the registry itself alone.

    Raises:
        InvalidInput: the login is not base64.
    """
    plain = config.partition(REGISTRY_LOGIN_MARK)[0]
    basic = registry_login.basic_for(host) if registry_login.gives_tokens(host) else ""
    if not basic:
        return plain
    return f'{plain}{REGISTRY_LOGIN_MARK}  [plugins."io.containerd.grpc.v1.cri".registry.configs."{host}".auth]\n    auth = "{check_basic(basic)}"\n'


def mode_of(config: str) -> int:
    """Of containerd's configuration: with a login in it, it is root's alone."""
    return 0o600 if REGISTRY_LOGIN_MARK in config else 0o644


def check_basic(basic: str) -> str:
    """Check what is written into a TOML string. InvalidInput, which does not quote it, if it is not base64."""
    if not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", basic):
        raise InvalidInput("the registry's login is not base64")
    return basic


def with_sandbox_image(config: str, image: str) -> str:
    """containerd's configuration with this pause image, and with everything else as it was decided when the host joined. Raises InvalidInput."""
    line = f'sandbox_image = "{check_image(image)}"'
    return re.sub(r"^(\s*)sandbox_image\s*=.*$", lambda match: match.group(1) + line, config, flags=re.M)


# -- kubelet -------------------------------------------------------------------------------------------------------------


def kubelet(journal: Journal, decisions: HostDecisions, arguments: str) -> None:
    """Write the patch that kubeadm merges into the node's KubeletConfiguration, and the kubelet's extra arguments. Raises InvalidInput."""
    kubelet_flags.check(arguments)
    patch = f"{PATCHES_DIR}/kubeletconfiguration+merge.json"
    journal.replace_file(patch, json.dumps(decisions.kubelet(), indent=1, sort_keys=True) + "\n", mode=0o600)
    kubelet_flags.write(journal, arguments)


def kubelet_arguments(
    provider_id: str, node_ip: str, labels: Sequence[str] = (), taints: Sequence[str] = (), *, node_name: str = "", resolv_conf: str = ""
) -> str:
    """The kubelet's extra arguments as one string. They come after those that kubeadm writes, so they win.

    `node_name` is passed although kubeadm knows it: kubeadm writes it down only if the host had another name at that moment, and a host that is renamed
    later must stay the node that it is.

    Raises:
        InvalidInput: a label or taint is not plain, or the name is none of a node.
    """
    if node_name and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", node_name):
        raise InvalidInput(f"{node_name!r} can't be a node's name", permanent=True)
    for text in (*labels, *taints):
        if not re.fullmatch(r"[A-Za-z0-9._/=:-]+", text):
            raise InvalidInput(f"{text!r} is not a label or taint of a node", permanent=True)
    parts = []
    if node_name:
        parts.append(f"--hostname-override={node_name}")
    if provider_id:
        parts.append(f"--provider-id={provider_id}")
    if node_ip:
        parts.append(f"--node-ip={node_ip}")
    if resolv_conf:
        parts.append(f"--resolv-conf={resolv_conf}")
    if labels:
        parts.append(f"--node-labels={','.join(labels)}")
    if taints:
        parts.append(f"--register-with-taints={','.join(taints)}")
    return " ".join(parts)


def start_containerd() -> None:
    """Restart containerd with the present configuration, and wait until it answers. Raises AgentError."""
    from ckp.hostkit.waits import wait_for

    run(["systemctl", "daemon-reload"], timeout=60)
    run(["systemctl", "enable", "containerd"], timeout=60, check=False)
    # always a restart: it may run with an older configuration. Its containers keep running in their shims
    run(["systemctl", "restart", "containerd"], timeout=120, what="starting containerd", resolution="journalctl -u containerd", reason="ContainerdFailed")
    socket = CONTAINERD_SOCKET[len("unix://") :]

    def answers() -> str:
        if not os.path.exists(socket):
            return f"{socket} does not exist"
        version = run(["ctr", "--address", socket, "version"], timeout=15, check=False)
        return "" if version.code == 0 else version.tail()

    wait_for(answers, timeout=60, every=0.3, what="containerd answers", resolution="journalctl -u containerd", reason="ContainerdFailed")
