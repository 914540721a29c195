"""Reset: from a node back to a free host. Removes what Kubernetes, its network plugin and CKP have put on the host, and only that.

Every part is idempotent. What is left at the end is listed, and the reset fails; it is retried.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import time
from typing import Any

from ckp.agent.journal import Journal
from ckp.agent.system import firewall, folders, holds, prepare, swap
from ckp.agent.system.installers.base import Installer
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import read_text, remove
from ckp.hostkit.logs import log
from ckp.hostkit.processes import have, run

LINKS = re.compile(r"(cilium_\w+|lxc[0-9a-f]{10,13}|lxc_health|cni0|cali[0-9a-f]{11}|vxlan\.calico|kube-ipvs0|nodelocaldns)\Z")
"""Links that a cluster's network plugin makes. lxcbr0 and docker0 belong to others, and don't match."""
CHAINS = re.compile(r"(KUBE-|CILIUM_|OLD_CILIUM_|cali-)")
IPSETS = re.compile(r"(KUBE-|cilium_|cali)")
FILES = ("/etc/sysctl.d/99-zzz-override_cilium.conf", "/opt/cni/bin/cilium-cni", "/opt/cni/bin/loopback", "/opt/cni/bin/calico", "/opt/cni/bin/calico-ipam")
"""Files that pods of network plugins put outside of their own folders (the loopback plugin only if CKP's package did not install it)."""
NOTHING = "nothing had been changed"
"""The note for a host that was claimed and released before anything was done to it: everything on it belongs to its owner."""
SHIM = "containerd-shim"
GRACE_SECONDS = 5.0
BPF_PINS = ("/sys/fs/bpf/cilium", "/sys/fs/bpf/tc", "/sys/fs/bpf/calico")


def reset(journal: Journal, installer: Installer) -> str:
    """Undo a membership or a standalone installation; returns a note. AgentError with the list of what could not be removed."""
    ours = "containerd" in journal.packages or not installer.installed(["containerd"])
    places = (*folders.of_kubernetes(journal), *folders.CILIUM_FOLDERS, *(folders.CONTAINERD_FOLDERS if ours else ()))
    run(["systemctl", "disable", "--now", "kubelet"], timeout=120, check=False)
    if ours:
        run(["systemctl", "disable", "--now", "containerd"], timeout=120, check=False)
        _end_containers()
    else:
        _remove_pods()
    for folder in places:
        folders.unmount_below(journal, folder)
    _network()
    holds.release(journal, installer)
    installer.remove(list(reversed(journal.packages)))
    holds.give_back(journal, installer)
    folders.give_back_configuration(journal)
    for folder in places:
        folders.empty(journal, folder)
    for path in FILES:
        remove(path)
    for folder in ("/opt/cni/bin", "/opt/cni", "/etc/cni", "/etc/containerd", "/opt/containerd", "/usr/lib/modules"):
        folders.remove_if_empty(folder)
    folders.remove_empty_tree("/usr/libexec/kubernetes")
    _cgroups()
    journal.remove_files()
    if journal.saved.get("/root/.kube/config", {}).get("absent"):
        shutil.rmtree("/root/.kube/cache", ignore_errors=True)  # kubectl's, beside the configuration that CKP wrote
    swap.restore_fstab(journal)
    journal.restore_files()
    prepare.restore_sysctls(journal)
    firewall.close_ports(journal)
    run(["systemctl", "daemon-reload"], timeout=60, check=False)
    swap.restore_swap(journal)
    run(["systemctl", "reset-failed", "kubelet", "containerd"], timeout=60, check=False)
    left = leftovers(installer, journal, ours)
    if left:
        raise AgentError(
            "the host could not be reset completely",
            details="\n".join(left),
            resolution="restart the host to free what is still in use; the reset can be repeated",
            reason="ResetIncomplete",
        )
    needed = installer.remove_tools(journal.notes.get("tools", []))
    return "everything that was installed is removed" + (f", except {', '.join(needed)}, which other packages need" if needed else "")


def leftovers(installer: Installer, journal: Journal, runtime_was_ours: bool) -> list[str]:
    """What of a node is left on the host, in sentences; empty on a free host."""
    filled = (*folders.of_kubernetes(journal), *(folders.CONTAINERD_FOLDERS if runtime_was_ours else ()))
    found = [f"the folder {folder} is not empty" for folder in filled if folders.left_in(journal, folder)]
    found += [f"the link {name}" for name in _links()]
    places = ("/var/lib/kubelet/", "/run/cilium/", *(("/var/lib/containerd/", "/run/containerd/") if runtime_was_ours else ()))
    found += [f"the mount {point}" for point in folders.mounts() if point.startswith(places)]
    found += [f"the process {pid} ({name})" for pid, name in _runtime_processes() if runtime_was_ours]
    found += [f"BPF objects in {folder}" for folder in BPF_PINS if folders.names(folder)]
    found += [f"the package {name}" for name in installer.installed(journal.packages)]
    found += firewall.left(journal)
    for program in _iptables_programs():
        for table, lines in _tables(program).items():
            found += [f"{program} table {table}: {line}" for line in lines if CHAINS.search(line)][:3]
    return found


# -- processes and containers --------------------------------------------------------------------------------------------


def _remove_pods() -> None:
    """Remove the pods from a container runtime that stays, because CKP did not install it."""
    if not have("crictl"):
        return
    endpoint = f"--runtime-endpoint={prepare.CONTAINERD_SOCKET}"
    listed = run(["crictl", endpoint, "--timeout=10s", "pods", "-q"], timeout=30, check=False)
    pods = listed.stdout.split() if listed.code == 0 else []
    if pods:
        log(f"stopping {len(pods)} pods")
        run(["crictl", endpoint, "--timeout=10s", "rmp", "-f", *pods], timeout=300, check=False)


def _runtime_processes() -> list[tuple[int, str]]:
    """(pid, name) of the shims in containerd's namespace k8s.io, and of all their descendants."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    shims = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        stat = read_text(f"/proc/{entry}/stat")
        match = re.match(r"\d+ \((.*)\) (\S) (\d+)", stat, re.S)
        if match is None or match.group(2) == "Z":
            continue
        pid = int(entry)
        names[pid], parents[pid] = match.group(1), int(match.group(3))
        if match.group(1).startswith(SHIM) and "\0k8s.io\0" in read_text(f"/proc/{entry}/cmdline") + "\0":
            shims.add(pid)
    found = []
    for pid, name in names.items():
        ancestor: int | None = pid
        while ancestor and ancestor not in shims:
            ancestor = parents.get(ancestor)
        if ancestor:
            found.append((pid, name))
    return found


def _end_containers() -> None:
    """Terminate all processes in containers: SIGTERM first, so that databases can flush, and SIGKILL after GRACE_SECONDS.

    Not through the container runtime: it calls the network plugin to stop a pod, and Cilium's waits for its agent, which is gone.
    """
    processes = _runtime_processes()
    if processes:
        log(f"terminating {len(processes)} processes in containers")
    for pid, name in processes:
        if not name.startswith(SHIM):
            _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(not name.startswith((SHIM, "pause")) for _, name in _runtime_processes()):
        time.sleep(0.2)
    for _ in range(10):
        processes = _runtime_processes()
        if not processes:
            return
        # children first: if a shim died first, init would adopt them, and they would no longer be found
        for pid, name in processes:
            if not name.startswith(SHIM):
                _signal(pid, signal.SIGKILL)
        time.sleep(0.2)
        for pid, name in processes:
            if name.startswith(SHIM):
                _signal(pid, signal.SIGKILL)
        time.sleep(0.2)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _cgroups() -> None:
    """Remove the empty cgroups of pods; the kernel refuses to remove those in use."""
    roots = ["/sys/fs/cgroup", *(os.path.join("/sys/fs/cgroup", name) for name in folders.names("/sys/fs/cgroup"))]
    for root in roots:
        for name in ("kubepods", "kubepods.slice", "kubelet.slice", "k8s.io"):
            top = os.path.join(root, name)
            if not os.path.isdir(top):
                continue
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass


# -- network -------------------------------------------------------------------------------------------------------------


def _links() -> list[str]:
    listed = run(["ip", "-j", "link", "show"], timeout=20, check=False)
    try:
        links: list[dict[str, Any]] = json.loads(listed.stdout or "[]")
    except ValueError:
        return []
    return [str(link["ifname"]) for link in links if LINKS.match(str(link.get("ifname", "")))]


def _network() -> None:
    _bpf()
    for name in _links():
        run(["ip", "link", "delete", name], timeout=20, check=False)
    _namespaces()
    _rules()
    for program in _iptables_programs():
        _iptables(program)
    _nft()
    _ipsets()


def _bpf() -> None:
    """Detach Cilium's BPF programs: links by their pins, classic filters by their qdisc, the others by bpftool, if it is installed."""
    for point in ("/run/cilium/cgroupv2", "/var/run/cilium/cgroupv2"):
        if have("bpftool") and os.path.isdir(point):
            listed = run(["bpftool", "-j", "cgroup", "tree", point], timeout=30, check=False)
            for group, kind, program in _cilium_attachments(listed.stdout):
                run(["bpftool", "cgroup", "detach", group, kind, "id", program], timeout=20, check=False)
    for folder in BPF_PINS:
        shutil.rmtree(folder, ignore_errors=True)
    if have("tc"):
        for name in folders.names("/sys/class/net"):
            for direction in ("ingress", "egress"):
                filters = run(["tc", "filter", "show", "dev", name, direction], timeout=20, check=False)
                if "cil_" in filters.stdout or "bpf_" in filters.stdout and "cilium" in filters.stdout:
                    run(["tc", "qdisc", "del", "dev", name, "clsact"], timeout=20, check=False)
                    break
    for point in ("/run/cilium/cgroupv2", "/var/run/cilium/cgroupv2"):
        if os.path.realpath(point) in folders.mounts():
            run(["umount", "-l", point], timeout=20, check=False)


def _cilium_attachments(text: str) -> list[tuple[str, str, str]]:
    """(cgroup, attach type, program id) of Cilium's programs in `bpftool -j cgroup tree`."""
    try:
        groups = json.loads(text or "[]")
    except ValueError:
        return []
    found = []
    for group in groups if isinstance(groups, list) else []:
        for program in group.get("programs", []):
            if str(program.get("name", "")).startswith("cil_"):
                found.append((str(group.get("cgroup", "")), str(program.get("attach_type", "")), str(program.get("id", ""))))
    return found


def _namespaces() -> None:
    """Remove the network namespaces of pods (cni-<uuid>)."""
    for name in folders.names("/run/netns"):
        if not re.fullmatch(r"cni-[0-9a-f-]{36}", name):
            continue
        if not run(["ip", "netns", "pids", name], timeout=20, check=False).stdout.strip():  # one with processes belongs to containers of another runtime
            run(["ip", "netns", "delete", name], timeout=20, check=False)


def _rules() -> None:
    """Remove Cilium's routing rules and tables. Cilium may also have moved the local table's rule from 0 to 100: restore that first."""
    for family in ("-4", "-6"):
        text = run(["ip", family, "rule", "show"], timeout=20, check=False).stdout
        if re.search(r"^100:\s+from all lookup local", text, re.M) and not re.search(r"^0:\s+from all lookup local", text, re.M):
            run(["ip", family, "rule", "add", "pref", "0", "lookup", "local"], timeout=20, check=False)
            run(["ip", family, "rule", "del", "pref", "100", "lookup", "local"], timeout=20, check=False)
        for pref, table in re.findall(r"^(\d+):.*lookup (2004|2005)\b", text, re.M):
            run(["ip", family, "rule", "del", "pref", pref, "lookup", table], timeout=20, check=False)
        for table in ("2004", "2005"):
            if run(["ip", family, "route", "show", "table", table], timeout=20, check=False).stdout.strip():
                run(["ip", family, "route", "flush", "table", table], timeout=20, check=False)


def _iptables_programs() -> list[str]:
    return [name for name in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy") if have(f"{name}-save")]


def _tables(program: str) -> dict[str, list[str]]:
    """The rules of each table. Unused legacy tables are not read, since reading would create them."""
    if program.endswith("-legacy"):
        names = read_text("/proc/net/ip6_tables_names" if program.startswith("ip6") else "/proc/net/ip_tables_names").split()
        texts = [(name, run([f"{program}-save", "-t", name], timeout=30, check=False).stdout) for name in names]
    else:
        whole = run([f"{program}-save"], timeout=30, check=False).stdout
        texts = [(match.group(1), match.group(2)) for match in re.finditer(r"^\*(\S+)\n(.*?)^COMMIT$", whole, re.M | re.S)]
    return {name: text.splitlines() for name, text in texts}


def iptables_plan(lines: list[str]) -> list[list[str]]:
    """The iptables arguments that remove CHAINS and the jumps to them, and nothing else, from a table's rules (as iptables-save prints them)."""
    chains = [line[1:].split()[0] for line in lines if line.startswith(":") and CHAINS.match(line[1:])]
    plan: list[list[str]] = []
    for line in lines:
        if not line.startswith("-A "):
            continue
        words = shlex.split(line)
        target = words[words.index("-j") + 1] if "-j" in words[:-1] else words[words.index("-g") + 1] if "-g" in words[:-1] else ""
        if words[1] not in chains and CHAINS.match(target):
            plan.append(["-D", *words[1:]])
    plan += [["-F", chain] for chain in chains]
    plan += [["-X", chain] for chain in chains]
    return plan


def _iptables(program: str) -> None:
    for table, lines in _tables(program).items():
        for arguments in iptables_plan(lines):
            run([program, "-w", "10", "-t", table, *arguments], timeout=60, check=False)


def _nft() -> None:
    """Delete kube-proxy's tables (nftables mode), and iptables' tables that are empty now (the kubelet made them; they have no effect)."""
    if not have("nft"):
        return
    for program, family in (("iptables-nft", "ip"), ("ip6tables-nft", "ip6")):
        for table, lines in _tables(program).items() if have(f"{program}-save") else ():
            if all(re.fullmatch(r":[A-Z]+ ACCEPT \[\d+:\d+\]", line) for line in lines):
                run(["nft", "delete", "table", family, table], timeout=20, check=False)
    for family, name in re.findall(r"^table (\S+) (\S+)", run(["nft", "list", "tables"], timeout=20, check=False).stdout, re.M):
        if name == "kube-proxy":
            run(["nft", "delete", "table", family, name], timeout=20, check=False)


def _ipsets() -> None:
    if not have("ipset"):
        return
    for name in run(["ipset", "list", "-n"], timeout=20, check=False).stdout.split():
        if IPSETS.match(name):
            run(["ipset", "destroy", name], timeout=20, check=False)
