"""The main path of a join: another host becomes a master or a worker of a standalone cluster. A second run continues an interrupted one.

The steps up to the packages are the installation's own, so what is verified, and how, is the same. Then kubeadm joins.
"""

from __future__ import annotations

import base64
import email.utils
import functools
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from typing import Any, Optional, Sequence

from ckp.agent.journal import Journal
from ckp.agent.node.join import BOOTSTRAP_CONF, KUBELET_CONF, is_node, kubelet_health, kubelet_log_tail, node_of_certificate
from ckp.agent.system.installers.detect import of_host
from ckp.hostkit.errors import SET_CLOCK, AgentError, InvalidInput
from ckp.hostkit.files import atomic_write, remove
from ckp.hostkit.processes import run
from ckp.hostkit.waits import wait_for
from ckp.standalone import checks, members, options, steps
from ckp.standalone.address import unit
from ckp.standalone.api import Answer, Server, Unreachable, trust, without_trust
from ckp.standalone.cluster import ADMIN, RUN_DIR, api_ready, kubectl
from ckp.standalone.config import Plan, join_config, needed_first
from ckp.standalone.install import Screen, check_same, journal_of, refuse_managed, run_steps
from ckp.standalone.options import CONTROL_PLANE, FIRST, WORKER, Options
from ckp.standalone.steps import STEPS, Context, Step
from ckp.standalone.token import NEW_TOKEN, JoinToken, decode, hash_of_certificate

CLUSTER_INFO = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
MANIFESTS = "/etc/kubernetes/manifests"
ETCD_DATA = "/var/lib/etcd"
MOST_CLOCK_SECONDS = 60.0
"""By which this host's clock may differ from the API server's: kubeadm's certificates and tokens are compared with it."""
REACH_SECONDS = 10.0
RESUME_SECONDS = 180.0
"""For the API server to answer a join that goes on: this host may be one of the two members that its etcd needs, and be starting."""
JOIN_SECONDS = 900.0
STALE_NODE_SECONDS = 120.0
HOST_STEPS = ("verify", "system", "containerd", "runc", "kernel", "packages", "swap")
"""The installation's steps that a join has as well."""


def read_token(path: str) -> str:
    """A token from a file, or from standard input if `path` is "-". InvalidInput if the file can't be read."""
    if path == "-":
        if sys.stdin.isatty():
            sys.stderr.write("paste the join token, then press Enter and Ctrl-D:\n")
        return sys.stdin.read(65536)
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(65536)
    except OSError as error:
        raise InvalidInput(f"the token file {path} can't be read: {error.strerror}") from None


def plan_of(role: str, token: Optional[JoinToken] = None) -> tuple[Step, ...]:
    """The steps of a host with this role; the token is needed only to do them."""
    if role == FIRST:
        return STEPS
    host = tuple(step for step in STEPS if step.name in HOST_STEPS)
    joining = Step("join", "Join the cluster (kubeadm join)", functools.partial(kubeadm_join, token=token))
    ready = Step("node", "Node ready", node_ready)
    if role == WORKER:
        return (*host, joining, ready)
    config = next(step for step in STEPS if step.name == "kubectl")
    return (*host, joining, config, Step("address", "Virtual address", virtual_address), ready)


def join(chosen: Options, token_text: str, *, control_plane: bool, screen: Screen | None = None, plan: Sequence[Step] | None = None) -> None:
    """Make this host a node of the token's cluster. Resumable.

    Args:
        chosen: without what the token has (networks, virtual address, release; a release of its own must be the token's).

    Raises:
        AgentError: as `ckp.standalone.install.install`.
    """
    refuse_managed(chosen.state_dir)
    journal = journal_of(chosen.state_dir)
    role = CONTROL_PLANE if control_plane else WORKER
    if not token_text.strip() and is_finished(journal, role):
        already(screen or Screen(1), journal)
        return
    token = decode(token_text)
    wanted = with_token(chosen, token, role)
    options.check(wanted)
    plan = plan if plan is not None else plan_of(role, token)
    screen = screen or Screen(len(plan))
    if journal.member is not None:
        check_same(journal.member, wanted.member(journal.member.release))
        if all(step.name in journal.done for step in plan):
            already(screen, journal)
            return
        screen.line(f"continuing an interrupted join: {len(journal.done)} of {len(plan)} steps are done")
    if control_plane and not token.certificate_key:
        raise InvalidInput("this token is for workers, and a master is to join", resolution="make one with `ckp-agent standalone token create --control-plane`")
    installer = of_host()
    context = Context(wanted, journal, installer, screen.say)
    if journal.member is None:
        findings = checks.preflight_findings(wanted, journal, installer)
        findings.raise_if_any("this host can't join the cluster")
    if "join" not in journal.done:
        reach(token, wait=REACH_SECONDS if journal.member is None else RESUME_SECONDS)
    if journal.member is None:
        name = wanted.node_name or options.default_node_name(os.uname().nodename)
        if members.is_ready(node_of(token, name)):
            raise InvalidInput(
                f"the cluster has a node {name} already, and it is Ready", resolution="choose another name with --node-name, or remove that node first"
            )
        for item in findings.items:
            screen.line(f"note: {item.problem}: {item.remediation}")
    started = time.monotonic()
    run_steps(context, screen, plan)
    name = context.plan().node_name
    screen.line()
    screen.line(f"This host is the {'master' if control_plane else 'worker'} {name} of the cluster at {token.endpoint}, in {time.monotonic() - started:.0f} s.")
    if control_plane:
        screen.line(f"  kubeconfig  {ADMIN}")
    screen.line("  undo        ckp-agent standalone reset")


def with_token(chosen: Options, token: JoinToken, role: str) -> Options:
    """The options of this join, with what the token decides. InvalidInput if they ask for another release."""
    if chosen.release and chosen.release != token.release:
        raise InvalidInput(
            f"the cluster is of release {token.release}, and --release asks for {chosen.release}", resolution="join with the bundle of the cluster's release"
        )
    return replace(
        chosen,
        release=token.release,
        pod_cidr=token.pod_cidr,
        service_cidr=token.service_cidr,
        virtual_address=token.virtual_address,
        role=role,
        endpoint=token.endpoint,
        ca_hash=token.ca_hash,
    )


def is_finished(journal: Journal, role: str) -> bool:
    """Whether this host has joined with this role."""
    member = journal.member
    return member is not None and member.settings.get("role") == role and all(step.name in journal.done for step in plan_of(role))


def already(screen: Screen, journal: Journal) -> None:
    """Say that there is nothing to do."""
    assert journal.member is not None
    settings = journal.member.settings
    screen.line(
        f"this host has joined the cluster at {settings.get('endpoint')} already ({settings.get('role')}, {journal.member.release}); nothing was changed"
    )


# -- the cluster, before this host is a part of it -------------------------------------------------------------------------


def reach(token: JoinToken, *, wait: float) -> Server:
    """Find the token's cluster: its API server answers, is the one that the token means, and agrees about the time. Nothing is changed.

    As kubeadm: the public cluster-info is read without trust, and its CA must have the hash that the token has.

    Raises:
        InvalidInput: it can't be reached within `wait` seconds, is another cluster's, the clocks differ, or the token has expired.
    """
    address = f"https://{token.endpoint}"
    deadline = time.monotonic() + wait
    while True:
        try:
            answer = Server(token.host, token.port, without_trust()).request("GET", CLUSTER_INFO, timeout=REACH_SECONDS)
            if answer.status == 200 or time.monotonic() > deadline:
                break
        except Unreachable as error:
            if time.monotonic() > deadline:
                raise InvalidInput(
                    f"the cluster's API server {address} can't be reached from this host: {error}",
                    resolution="check that its masters run, that this host has a route to that address, and that no firewall between them closes the port",
                ) from None
        time.sleep(2)
    check_clock(answer.date, time.time())
    if token.expired(time.time()):
        raise InvalidInput(f"the join token has expired ({token.expires})", resolution=NEW_TOKEN)
    ca = ca_of(answer)
    if not ca or hash_of_certificate(ca) != token.ca_hash:
        raise InvalidInput(
            f"the API server at {address} is of another cluster than the token's", details=f"its CA is not {token.ca_hash}", resolution=NEW_TOKEN
        )
    return Server(token.host, token.port, trust(ca_pem=ca), bearer=token.token)


def ca_of(answer: Answer) -> str:
    """The cluster's CA, as PEM, of the kubeconfig in cluster-info; "" if there is none."""
    data = answer.json()
    text = str((data.get("data") or {}).get("kubeconfig", "")) if isinstance(data, dict) else ""
    match = re.search(r"certificate-authority-data:\s*([A-Za-z0-9+/=]+)", text)
    try:
        return base64.b64decode(match.group(1)).decode("ascii") if match else ""
    except ValueError:
        return ""


def check_clock(date: str, now: float) -> None:
    """InvalidInput if this host's time (seconds since the epoch) is far from that of the API server (its Date header)."""
    try:
        theirs = email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, IndexError):
        return  # it says nothing about the time
    if abs(now - theirs) > MOST_CLOCK_SECONDS:
        raise InvalidInput(
            f"this host's clock is {abs(now - theirs):.0f} s {'ahead of' if now > theirs else 'behind'} the cluster's", resolution=SET_CLOCK + ", on all hosts"
        )


def node_of(token: JoinToken, name: str) -> dict[str, Any]:
    """A Node of the cluster, by the bootstrap token; empty if there is none, or if it can't be read. Raises InvalidInput as `reach`."""
    try:
        answer = reach(token, wait=REACH_SECONDS).request("GET", f"/api/v1/nodes/{name}", timeout=REACH_SECONDS)
    except Unreachable:
        return {}
    data = answer.json()
    return data if answer.status == 200 and isinstance(data, dict) else {}


# -- the steps -------------------------------------------------------------------------------------------------------------


def kubeadm_join(context: Context, token: Optional[JoinToken]) -> str:
    """Join by kubeadm. What an interrupted join has left is undone first, on this host and in etcd."""
    if token is None:
        raise InvalidInput("a join needs a token", resolution=NEW_TOKEN)
    plan = context.plan()
    pulls = steps.pulls_of(context, plan)
    steps.end_kubeadm()
    if has_joined(plan):
        return "joined before"
    if is_begun():
        context.say("resetting an interrupted kubeadm join")
        undo(context, plan)
    if members.is_ready(node_of(token, plan.node_name)):
        _wait_stale(context, token, plan.node_name)
    steps.write_kubelet(context, plan)
    pulls.wait([plan.image(name) for name in needed_first(plan.options.role)])
    if plan.options.role == WORKER:
        os.makedirs(RUN_DIR, mode=0o700, exist_ok=True)
    else:
        steps.write_patches(context, plan)
    config = os.path.join(RUN_DIR, "join.json")
    atomic_write(config, join_config(plan, token), mode=0o600)
    try:
        if plan.options.role != WORKER and (note := _leave_before(config, plan)):
            context.say(note)
        ignored = plan.decisions.ignored_preflight()
        _kubeadm(["join", "--config", config, *([f"--ignore-preflight-errors={','.join(ignored)}"] if ignored else [])], JOIN_SECONDS)
    except AgentError as error:
        error.details += "\nkubelet:\n" + kubelet_log_tail()
        raise
    finally:
        remove(config)
    return f"node {plan.node_name}"


def _kubeadm(arguments: list[str], seconds: float) -> None:
    run(
        ["kubeadm", *arguments],
        timeout=seconds,
        what="kubeadm join",
        resolution="see kubeadm's output; journalctl -u kubelet and /var/log/pods show more; then run the same command again",
        reason="JoinFailed",
    )


def _leave_before(config: str, plan: Plan) -> str:
    """Remove the member of etcd that an earlier join of this host has left, by the certificates that kubeadm's first phases fetch; returns a note.

    Such a member would keep others from joining (etcd takes one learner at a time), and count for the quorum if it had a vote.
    """
    for phase in ("download-certs", "certs", "kubeconfig"):
        _kubeadm(["join", "phase", "control-plane-prepare", phase, "--config", config], 180)
    return members.drop_stale(plan.node_name, plan.address)


def has_joined(plan: Plan) -> bool:
    """Whether kubeadm has finished here: the kubelet has its certificate and works; of a master, the last phase has marked its node."""
    if not is_node() or node_of_certificate() != plan.node_name or os.path.exists(BOOTSTRAP_CONF) or kubelet_health():
        return False
    if plan.options.role == WORKER:
        return True
    if not os.path.exists(f"{MANIFESTS}/kube-apiserver.yaml") or api_ready():
        return False
    labels = kubectl("get", "node", plan.node_name, "-o", "jsonpath={.metadata.labels}", "--request-timeout=20s", check=False)
    return f'"{members.CONTROL_PLANE_LABEL}"' in labels


def is_begun() -> bool:
    """Whether a kubeadm join has begun here."""
    places = (KUBELET_CONF, BOOTSTRAP_CONF, "/etc/kubernetes/pki", f"{ETCD_DATA}/member")
    return any(os.path.exists(place) for place in places) or bool(os.path.isdir(MANIFESTS) and os.listdir(MANIFESTS))


def undo(context: Context, plan: Plan) -> None:
    """Undo a join that was interrupted. This host's member of etcd goes while it may still run: one that has a vote is needed to remove itself from two."""
    if plan.options.role != WORKER and os.path.exists(ADMIN) and os.path.exists(members.CLIENT_KEY):
        try:
            if note := members.drop_stale(plan.node_name, plan.address):
                context.say(note)
        except AgentError as error:
            if os.path.exists(f"{ETCD_DATA}/member") and os.path.exists(members.ETCD_MANIFEST):
                raise AgentError(
                    "this host's member can't be removed from etcd, and may be needed by the others",
                    details=error.sentence(),
                    resolution="wait until the cluster answers (it may need this host's kubelet: systemctl start kubelet), then run the same command again",
                    reason="JoinFailed",
                ) from None
    run(["kubeadm", "reset", "-f", "--cleanup-tmp-dir", "--kubeconfig", "/nonexistent", "--skip-phases", "remove-etcd-member"], timeout=300, check=False)
    shutil.rmtree(ETCD_DATA, ignore_errors=True)


def _wait_stale(context: Context, token: JoinToken, name: str) -> None:
    """Wait until the cluster has noticed that this host's node of an interrupted join is away: kubeadm refuses to join as a node that is Ready."""
    context.say(f"waiting: the cluster still has the node {name} as Ready, from the interrupted join")
    wait_for(
        lambda: "the node is still Ready" if members.is_ready(node_of(token, name)) else "",
        timeout=STALE_NODE_SECONDS,
        every=3,
        what=f"the node {name} of the interrupted join is not Ready",
        resolution="if another host has that name, choose another one with --node-name",
        reason="NodeExists",
    )


def virtual_address(context: Context) -> str:
    settings = steps.address_settings(context.plan())
    return unit.take_part(context.journal, settings) if settings else "the cluster has none"


def node_ready(context: Context) -> str:
    """Wait until the node is Ready: the network's pod has come, too."""
    plan = context.plan()
    steps.pulls_of(context, plan).wait([image for image in plan.images() if "/cilium:" in image])

    def missing() -> str:
        path = "jsonpath={range .status.conditions[?(@.type=='Ready')]}{.status} {.message}{end}"
        state = kubectl("get", "node", plan.node_name, "-o", path, "--request-timeout=10s", check=False, kubeconfig=KUBELET_CONF)
        return "" if state.startswith("True") else f"node {plan.node_name}: {state.strip() or 'not registered yet'}"

    tail = kubelet_log_tail if plan.options.role == WORKER else steps.pods_tail
    steps.wait_with_progress(context, missing, "the node is Ready", "NodeNotReady", tail)
    return spread_dns() if plan.options.role != WORKER else ""


def spread_dns() -> str:
    """Have one of CoreDNS' pods made again if all are on one node, as they are since the first master was alone; returns a note.

    Its anti-affinity then brings it to another node. A restart of the whole Deployment does not: while old pods are on all nodes, new ones have no
    preference, and both may come to the same.
    """
    path = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName}{'\\n'}{end}"
    found = [line.split() for line in kubectl("-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", path, check=False).splitlines()]
    where = {words[1] for words in found if len(words) > 1}
    if len(found) < 2 or len(where) != 1:
        return ""
    kubectl("-n", "kube-system", "delete", "pod", found[0][0], "--wait=false", check=False)
    return "CoreDNS is spread over the masters"
