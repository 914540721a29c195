"""The twelve steps of a standalone installation. Each is idempotent, and records what it changes in the journal."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import Callable

from ckp.agent.fetch.bundles import bundle_folder, pull_bundle
from ckp.agent.fetch.copies import copy_bundle
from ckp.agent.fetch.images import ImagePulls
from ckp.agent.journal import Journal
from ckp.agent.node.actions import add_tools
from ckp.agent.node.join import kubelet_health, kubelet_log_tail
from ckp.agent.node.packages import check_fits, install_packages
from ckp.agent.system import facts, firewall, folders, prepare, resolver, runtime_proxy, units
from ckp.agent.system.installers.base import NODE_PACKAGES, Installer
from ckp.agent.system.installers.detect import select
from ckp.agent.system.swap import swap_off
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import atomic_write, read_text, remove
from ckp.hostkit.processes import have, run
from ckp.hostkit.waits import wait_for
from ckp.standalone import restored
from ckp.standalone.address import unit
from ckp.standalone.address.service import BOOTSTRAP, Settings
from ckp.standalone.cluster import ADMIN, RUN_DIR, api_ready, kubectl
from ckp.standalone.config import (
    CNI_IMAGES,
    CONTROL_PLANE_IMAGES,
    NEEDED_IMAGES,
    STORAGE_CLASS,
    STORAGE_NAMESPACE,
    Plan,
    cilium_values,
    kubeadm_config,
    kubelet_arguments,
    needed_first,
    static_pod_patches,
)
from ckp.standalone.options import FIRST, NODE_NAME, WORKER, Options, default_node_name
from ckp.verify.bundle import BundleManifest, verify_bundle

ETCD_PORTS = firewall.Port("2379-2380", "tcp")
"""Between masters."""
INIT_SECONDS = 600.0
READY_SECONDS = 600.0


@dataclass
class Context:
    """What the steps share, besides the journal."""

    options: Options
    journal: Journal
    installer: Installer
    say: Callable[[str], None]
    manifest: BundleManifest | None = None
    pulls: ImagePulls | None = None
    notes: list[str] = field(default_factory=list)

    def verified(self) -> BundleManifest:
        """The bundle, verified in this run, even if an earlier run verified it. Raises AgentError."""
        if self.manifest is None:
            self.manifest = _verify(self)
        return self.manifest

    def plan(self) -> Plan:
        """The plan, from options, bundle and host. Raises AgentError."""
        options, manifest = self.options, self.verified()
        return Plan(
            options=options,
            manifest=manifest,
            decisions=prepare.decide(options.host_json),
            registry=(options.registry or manifest.registry).rstrip("/"),
            address=options.advertise_address or facts.default_address(),
            node_name=options.node_name or self.journal.notes.get(NODE_NAME) or default_node_name(socket.gethostname()),
        )

    def registry_ca(self) -> str:
        """The registry's CA as PEM; "" for the system's CAs."""
        path = self.options.registry_ca_file
        return read_text(path) if path else ""


@dataclass(frozen=True)
class Step:
    """A step and its title; `do` returns a note, and raises AgentError."""

    name: str
    title: str
    do: Callable[[Context], str]


def _verify(context: Context) -> BundleManifest:
    options = context.options
    if options.bundle_folder:
        folder = copy_bundle(options.bundle_folder, options.state_dir)
    else:
        folder = bundle_folder(options.state_dir, options.bundle_image)
        pull_bundle(options.imgpkg, options.bundle_image, folder, context.registry_ca())
    try:
        manifest = verify_bundle(folder, options.keyring, options.release or None)
    except AgentError:
        shutil.rmtree(folder, ignore_errors=True)  # pulled or copied by us, and invalid: the next run does it again
        raise
    check_fits(manifest)
    select(manifest, NODE_PACKAGES)
    first = options.role == FIRST
    missing = [name for name in ("helm",) if first and manifest.package(name) is None] + [
        name for name in ("chart-cilium.tgz", "local-path.yaml") if first and name not in manifest.files
    ]
    images = (*needed_first(options.role), *(NEEDED_IMAGES if first else CNI_IMAGES))
    missing += [f"the image {name}" for name in images if name not in manifest.images]
    if missing:
        raise AgentError(
            f"the bundle {manifest.release} lacks {', '.join(missing)}", resolution="build it again (ckp dist build)", reason="BundleIncomplete", permanent=True
        )
    return manifest


# -- 1 to 7: the host ----------------------------------------------------------------------------------------------------


def verify_packages(context: Context) -> str:
    manifest = context.verified()
    for line in manifest.stand_ins:
        context.say(f"stand-in: {line}")
    return f"{len(manifest.packages)} packages of {manifest.release}, signed by {manifest.key}"


def system_packages(context: Context) -> str:
    folders.remember_present(context.journal)
    return add_tools(context.journal, context.installer) or "none missing"


def containerd(context: Context) -> str:
    plan = context.plan()
    prepare.containerd(context.journal, plan.decisions, plan.image("pause"), plan.registry, context.registry_ca())
    units.write(context.journal)
    if note := runtime_proxy.write(context.journal, (plan.options.pod_cidr, plan.options.service_cidr)):
        context.say(note)
    install_packages(context.journal, context.installer, plan.manifest, ["containerd", *(["cri-tools"] if plan.manifest.package("cri-tools") else [])])
    return run(["containerd", "--version"], timeout=20).stdout.split(" ")[2] if have("containerd") else ""


def runc(context: Context) -> str:
    """Check that runc runs, which is part of containerd's package, and start containerd."""
    version = run(["runc", "--version"], timeout=20, what="reading runc's version", resolution="the bundle's containerd package must contain runc")
    prepare.start_containerd()
    match = re.search(r"runc version (\S+)", version.stdout)
    return match.group(1) if match else ""


def kernel(context: Context) -> str:
    ports = ports_of(context.options.role, bool(context.options.virtual_address))
    return "; ".join([*prepare.kernel(context.journal), *firewall.open_ports(context.journal, ports)])


def ports_of(role: str, several: bool) -> tuple[firewall.Port, ...]:
    """What other hosts must reach on a host of this role. `several`: the cluster can have several masters."""
    return (*firewall.PORTS, *(() if role == WORKER else (firewall.API_SERVER,)), *((ETCD_PORTS,) if several and role != WORKER else ()))


def write_kubelet(context: Context, plan: Plan) -> None:
    """Write the kubelet's settings, and name servers that pods can reach if the host's own can't be (see ckp.agent.system.resolver)."""
    resolv_conf = resolver.wanted("", "resolvConf" in plan.decisions.kubelet())
    if resolv_conf == resolver.OWN:
        resolver.write(context.journal, plan.address)
    prepare.kubelet(context.journal, plan.decisions, kubelet_arguments(plan, resolv_conf))


def ckp_packages(context: Context) -> str:
    manifest = context.verified()
    names = [package.name for package in select(manifest, NODE_PACKAGES)]
    plan = context.plan()
    context.journal.note(NODE_NAME, plan.node_name)  # the OS may be renamed before the next run
    # before the package installs its own: a reset restores what was there at this moment
    write_kubelet(context, plan)
    install_packages(context.journal, context.installer, manifest, names)
    run(["systemctl", "daemon-reload"], timeout=60)
    run(["systemctl", "enable", "kubelet"], timeout=60, what="enabling the kubelet")
    return "; ".join(plan.decisions.notes)


def swap(context: Context) -> str:
    return "; ".join(swap_off(context.journal)) or "it was off"


# -- 8 to 12: the cluster ------------------------------------------------------------------------------------------------


def _initialised() -> bool:
    """Whether kubeadm init was completed: these objects are the result of its last phases (bootstrap token, CoreDNS)."""
    if api_ready():
        return False
    names = kubectl("-n", "kube-system", "get", "deployment/coredns", "configmap/kubeadm-config", "-o", "name", "--ignore-not-found", check=False)
    return len(names.split()) == 2


def kubeadm_init(context: Context) -> str:
    plan = context.plan()
    pulls = pulls_of(context, plan)
    settings = address_settings(plan)
    from_backup = restored.is_there()
    end_kubeadm()
    if settings and not _elected(settings):
        unit.hold(context.journal, settings)  # kubeadm reaches its API server by the virtual address
    if os.path.exists(ADMIN):
        # an earlier run came this far: wait for its API server, then decide
        try:
            wait_for(api_ready, timeout=60, every=1.0, what="the API server answers")
        except AgentError:
            pass
        if _initialised() and not (from_backup and restored.interrupted()):
            _hand_over(settings, from_backup=from_backup)
            return "initialised before"
        context.say("resetting an interrupted kubeadm init")
        run(["kubeadm", "reset", "-f", "--cleanup-tmp-dir", "--kubeconfig", "/nonexistent", "--skip-phases", "remove-etcd-member"], timeout=180, check=False)
        shutil.rmtree("/var/lib/etcd", ignore_errors=True)
    elif os.path.isdir("/etc/kubernetes/manifests") and os.listdir("/etc/kubernetes/manifests"):
        run(["kubeadm", "reset", "-f", "--kubeconfig", "/nonexistent", "--skip-phases", "remove-etcd-member"], timeout=180, check=False)
    if from_backup:
        restored.put()
        context.say("the cluster begins with the data and the CAs of a backup")
    write_kubelet(context, plan)
    pulls.wait([plan.image(name) for name in CONTROL_PLANE_IMAGES])
    write_patches(context, plan)
    config = os.path.join(RUN_DIR, "kubeadm.json")
    atomic_write(config, kubeadm_config(plan), mode=0o600)
    argv = ["kubeadm", "init", "--config", config, "--skip-phases=addon/kube-proxy"]
    ignored = [*plan.decisions.ignored_preflight(), *((restored.PREFLIGHT,) if from_backup else ())]
    if ignored:
        argv.append(f"--ignore-preflight-errors={','.join(ignored)}")
    try:
        run(
            argv,
            timeout=INIT_SECONDS,
            what="kubeadm init",
            resolution="see kubeadm's output; journalctl -u kubelet and /var/log/pods show more; then run the same command again",
            reason="InitFailed",
        )
    except AgentError as error:
        error.details += "\nkubelet:\n" + kubelet_log_tail()
        raise
    finally:
        remove(config)
    _hand_over(settings, from_backup=from_backup)
    return kubernetes(plan)


def address_settings(plan: Plan) -> Settings | None:
    """What the virtual address' service needs to know; None if the cluster has no such address."""
    address = plan.options.virtual_address
    return Settings(address, plan.address, plan.node_name) if address else None


def _elected(settings: Settings) -> bool:
    """Whether the virtual address' holder is elected already, so that this host must not take it without."""
    return not os.path.exists(BOOTSTRAP) and _initialised() and unit.is_set_up(settings)


def _hand_over(settings: Settings | None, *, from_backup: bool) -> None:
    if settings:
        unit.elect(settings, restored=from_backup)


def write_patches(context: Context, plan: Plan) -> None:
    """Write kubeadm's patches of the static pods, and make RUN_DIR."""
    for name, patch in static_pod_patches(plan).items():
        context.journal.replace_file(f"{prepare.PATCHES_DIR}/{name}", patch, mode=0o600)
    os.makedirs(RUN_DIR, mode=0o700, exist_ok=True)


def end_kubeadm() -> None:
    """End a kubeadm that an earlier, killed run has started: it goes on without its parent, and two at once would spoil each other's work.

    Not those in containers, which have a PID namespace of their own.
    """
    for entry in os.listdir("/proc"):
        if (
            not entry.isdigit()
            or not _is_of_host(entry)
            or not re.fullmatch(r"(\S*/)?kubeadm\0(init|join|reset)\0.*", read_text(f"/proc/{entry}/cmdline"), re.S)
        ):
            continue
        try:
            os.kill(int(entry), signal.SIGKILL)
        except OSError:
            continue
        wait_for(functools.partial(_still_runs, entry), timeout=30, every=0.1, what="the earlier kubeadm has ended")


def _is_of_host(pid: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError:
        return False  # it has ended


def _still_runs(pid: str) -> str:
    return f"process {pid} still runs" if read_text(f"/proc/{pid}/cmdline") else ""


def own_address(journal: Journal) -> str:
    """The address of this host in its cluster."""
    given = journal.member.settings.get("advertise_address", "") if journal.member else ""
    return given or facts.default_address()


def kubernetes(plan: Plan) -> str:
    """The API server's version, or the release if it does not answer."""
    try:
        return str(json.loads(kubectl("get", "--raw", "/version"))["gitVersion"])
    except (ValueError, KeyError, AgentError):
        return plan.manifest.release


def kubectl_config(context: Context) -> str:
    """Write root's ~/.kube/config, unless there is one of the owner; make admin.conf readable by root only."""
    os.chmod(ADMIN, 0o600)
    target = "/root/.kube/config"
    if not os.path.exists(target):
        context.journal.replace_file(target, read_text(ADMIN), mode=0o600)
        return target
    if read_text(target) == read_text(ADMIN):
        return target
    if target in context.journal.saved:
        context.journal.replace_file(target, read_text(ADMIN), mode=0o600)
        return target
    return f"{target} existed before and is not changed; use {ADMIN}"


def helm(context: Context) -> str:
    install_packages(context.journal, context.installer, context.verified(), ["helm"])
    return run(["helm", "version", "--short"], timeout=60, env={"HOME": RUN_DIR}).stdout.strip()


def cni(context: Context) -> str:
    plan = context.plan()
    pulls = pulls_of(context, plan)
    pulls.wait([image for image in plan.images() if "/cilium" in image])
    os.makedirs(RUN_DIR, mode=0o700, exist_ok=True)
    values = os.path.join(RUN_DIR, "cilium-values.json")
    atomic_write(values, json.dumps(cilium_values(plan), indent=1), mode=0o600)
    argv = [
        "helm",
        "--kubeconfig",
        ADMIN,
        "upgrade",
        "--install",
        "cilium",
        plan.manifest.path("chart-cilium.tgz"),
        "--namespace",
        "kube-system",
        "--values",
        values,
    ]
    # an interrupted helm leaves its release in a pending state, and refuses to upgrade it then
    pending = run(["helm", "--kubeconfig", ADMIN, "-n", "kube-system", "list", "--pending", "-q"], timeout=60, env={"HOME": RUN_DIR}, check=False)
    if "cilium" in pending.stdout.split():
        kubectl("-n", "kube-system", "delete", "secret", "-l", "owner=helm,name=cilium,status in (pending-install,pending-upgrade)", "--ignore-not-found")
    run(argv, timeout=300, env={"HOME": RUN_DIR}, what="installing Cilium by Helm", reason="CniFailed")
    node = plan.node_name

    def node_ready() -> str:
        state = kubectl("get", "node", node, "-o", "jsonpath={range .status.conditions[?(@.type=='Ready')]}{.status} {.message}{end}", check=False)
        return "" if state.startswith("True") else f"node {node}: {state.strip() or 'not registered yet'}"

    wait_with_progress(context, node_ready, "the node is Ready", "CniFailed", pods_tail)
    pulls.wait([image for image in plan.images() if "/coredns:" in image])

    def dns_ready() -> str:
        ready = kubectl("-n", "kube-system", "get", "deployment", "coredns", "-o", "jsonpath={.status.availableReplicas}/{.spec.replicas}", check=False)
        have_count, _, want = ready.partition("/")
        return "" if have_count and have_count == want else f"CoreDNS: {have_count or '0'} of {want or '?'} available"

    wait_with_progress(context, dns_ready, "CoreDNS is available", "DnsFailed", pods_tail)
    return f"Cilium {plan.manifest.images['cilium'].partition('@')[0]}, node {node} Ready, CoreDNS available"


def csi(context: Context) -> str:
    plan = context.plan()
    context.say("stand-in: local-path-provisioner instead of the release's OpenEBS hostpath, whose source is not available")
    text = read_text(plan.manifest.path("local-path.yaml"))
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text, timeout=120, what="applying the storage stand-in")
    default = "storageclass.kubernetes.io/is-default-class=true"
    kubectl("annotate", "storageclass", STORAGE_CLASS, default, "--overwrite", what=f"making {STORAGE_CLASS} the default class")

    def provisioner() -> str:
        argv = ["-n", STORAGE_NAMESPACE, "get", "deployment", "local-path-provisioner", "-o", "jsonpath={.status.availableReplicas}"]
        return "" if kubectl(*argv, check=False).strip() not in ("", "0") else "the local-path provisioner is not available yet"

    wait_with_progress(context, provisioner, "the storage provisioner is available", "CsiFailed", pods_tail)
    return f"default class {STORAGE_CLASS} (stand-in)"


def pulls_of(context: Context, plan: Plan) -> ImagePulls:
    """The image pulls of this run, which start with the first call, when containerd runs."""
    if context.pulls is None:
        context.pulls = ImagePulls(plan.images())
    return context.pulls


def start_pulls(context: Context) -> None:
    """Start to pull the images; containerd must run."""
    pulls_of(context, context.plan())


def wait_with_progress(context: Context, probe: Callable[[], str], what: str, reason: str, tail: Callable[[], str]) -> None:
    """Wait, and print every 15 s what is still missing. AgentError with `tail()` in its details after READY_SECONDS."""
    printed = time.monotonic()

    def observed() -> str:
        nonlocal printed
        missing = probe()
        if missing and time.monotonic() - printed > 15:
            printed = time.monotonic()
            context.say(f"waiting: {missing}")
        return missing

    try:
        wait_for(observed, timeout=READY_SECONDS, every=1.0, what=what, resolution="run the same command again: it continues here", reason=reason)
    except AgentError as error:
        error.details += "\n" + tail()
        raise


def pods_tail() -> str:
    pods = kubectl("get", "pods", "-A", "-o", "wide", check=False)
    events = kubectl("get", "events", "-A", "--field-selector", "type=Warning", check=False).splitlines()[-8:]
    return pods + "\n" + "\n".join(events) + ("\n" + health if (health := kubelet_health()) else "")


STEPS = (
    Step("verify", "Verify packages", verify_packages),
    Step("system", "System packages", system_packages),
    Step("containerd", "containerd", containerd),
    Step("runc", "runc", runc),
    Step("kernel", "Kernel modules and forwarding", kernel),
    Step("packages", "CKP packages", ckp_packages),
    Step("swap", "Swap off", swap),
    Step("init", "Control plane (kubeadm init)", kubeadm_init),
    Step("kubectl", "kubectl configuration", kubectl_config),
    Step("helm", "Helm", helm),
    Step("cni", "Network (Cilium)", cni),
    Step("csi", "Storage", csi),
)
