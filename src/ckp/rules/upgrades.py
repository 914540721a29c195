"""Upgrades of a cluster's Kubernetes: by which releases the control plane goes, what the control plane does now, and when workers follow. Pure.

Kubernetes' rules (https://kubernetes.io/releases/version-skew-policy/ and kubeadm's upgrade guide): control planes go up one minor at a time; API
servers of one cluster differ by one minor at most; controller-manager and scheduler are never newer than the oldest API server; a kubelet and a
kube-proxy are never newer than the API server, and up to three minors older (1.28 and later); kubectl may differ by one minor either way. A kubelet may
skip minors as long as its node was drained (KEP-3935), so workers are drained once where that is enough. Nothing goes back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ckp.kits.errors import InvalidInput

OLDEST_KUBELET = 3
"""Minors by which a kubelet, and so its node's kube-proxy, may be older than the API server (Kubernetes 1.28 and later; two before)."""
KUBECTL = 1
"""Minors by which kubectl may be older or newer than the API server."""
FIRST_EMULATED = (1, 31)
"""The oldest minor that programs of the next one emulate (KEP-4330; tried from v1.33.7 on, docs/adr/0040)."""
_FORM = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:[-+].*)?")


@dataclass(frozen=True, order=True)
class Version:
    """A version of Kubernetes; versions sort as they follow one another."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> Version:
        """From `v1.35.1`, or from what a program of it says, such as `v1.35.1-ckp`.

        Raises:
            InvalidInput: it is no version.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise InvalidInput(f"{text!r} is no version of Kubernetes", resolution="versions look like v1.35.1")
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        """As releases are called: `v1.35.1`."""
        return f"v{self.major}.{self.minor}.{self.patch}"

    @property
    def line(self) -> str:
        """Its minor, as people call it: `v1.35`."""
        return f"v{self.major}.{self.minor}"

    def minors_after(self, other: Version) -> int:
        """How many minors it is newer than another; negative if it is older. Of one major only."""
        return (self.major - other.major) * 1000 + self.minor - other.minor


# -- one step of a control plane


def step_refusal(reached: str, wanted: str) -> str:
    """Why a control plane can't go from one version to another in one step; "" if it can, also where both are the same.

    Args:
        reached: what runs.
        wanted: what is asked for.

    Raises:
        InvalidInput: one of them is no version.
    """
    old, new = Version.parse(reached), Version.parse(wanted)
    if new < old:
        return f"{wanted} is older than {reached}, which runs: Kubernetes does not go back; restore a backup instead"
    if new.minors_after(old) > 1:
        return (
            f"from {reached} to {wanted} are {new.minors_after(old)} minors, and a control plane goes one at a time: "
            f"ask for a release of v{old.major}.{old.minor + 1} first"
        )
    return ""


@dataclass(frozen=True)
class Target:
    """What a control plane is to be of now.

    Attributes:
        version: the release that is made so.
        begin: whether this is a step that is to be put down before anything is changed.
        refusal: why what is asked for is not done (yet); "" if it is.
        back: whether it is the way back of a step that was not committed.
    """

    version: str
    begin: bool = False
    refusal: str = ""
    back: bool = False


def soak_refusal(reached: str, wanted: str) -> str:
    """Why a step can't soak before it is committed; "" if it can. Within a minor nothing has to be emulated.

    Raises:
        InvalidInput: one of them is no version.
    """
    old, new = Version.parse(reached), Version.parse(wanted)
    if new.line != old.line and (old.major, old.minor) < FIRST_EMULATED:
        first = f"v{FIRST_EMULATED[0]}.{FIRST_EMULATED[1]}"
        return f"{wanted} can't behave as {old.line}: Kubernetes emulates {first} and later; ask for it without a soak"
    return ""


def target(reached: str, begun: str, wanted: str, installed: Collection[str], wait: str = "", *, uncommitted: bool = False) -> Target:
    """Decide what a control plane does now. A step that was begun is finished before another one is: some of its API servers may have written already.

    While a step goes on, only its patch version can still be changed (a release that does not start is replaced by the next one), and the step of a patch
    version can be taken back. So can that of a minor version before it is committed: until then its programs write as those before.

    Args:
        reached: the version that all of the control plane was of last; "" before it was ready once.
        begun: the version of the step that is going on, or, where nothing was reached yet, of the API servers that were made; "" if there is none.
        wanted: what is asked for.
        installed: the releases that the platform has.
        wait: why no step may begin now, such as a restore that goes on.
        uncommitted: whether the step that goes on soaks, or will, and was not committed.
    """
    if not reached:
        return _first_target(begun, wanted)
    if wanted == (begun or reached):
        return Target(wanted)
    if uncommitted and wanted == reached and reached in installed:
        return Target(reached, begin=True, back=True)
    refusal = step_refusal(reached, wanted)
    if begun and not refusal and Version.parse(wanted).line != Version.parse(begun).line:
        refusal = _while_begun(reached, begun, wanted, uncommitted=uncommitted)
    elif begun and refusal:
        refusal = f"the upgrade from {reached} to {begun} is finished first; then: {refusal}" if Version.parse(wanted) > Version.parse(begun) else refusal
    if not refusal and wanted not in installed:
        refusal = f"version {wanted} is not among the installed releases: {', '.join(sorted(installed, key=Version.parse)) or 'there is none'}"
    refusal = refusal or ("" if begun else wait)
    if refusal:
        return Target(begun or reached, refusal=refusal)
    return Target(wanted, begin=True)


def _while_begun(reached: str, begun: str, wanted: str, *, uncommitted: bool) -> str:
    """Why a step to another minor waits for the one that goes on."""
    if begun == reached:
        return f"the control plane goes back to {reached}, and that is finished first"
    if wanted == reached and not uncommitted:
        return (
            f"the upgrade from {reached} to {begun} is committed, and is finished: API servers of {begun} may have written what {reached} can't read. "
            "A backup of before brings the data back, not the version: ckp cluster restore"
        )
    ended = "committed and finished, or rolled back," if uncommitted else "finished"
    return f"the upgrade from {reached} to {begun} has begun, and is {ended} first: {wanted} is another minor"


def _first_target(begun: str, wanted: str) -> Target:
    """Before a control plane was ready once: its etcd may hold what the first API server wrote, also where the record of what was reached is lost."""
    if not begun or Version.parse(begun).line == Version.parse(wanted).line:
        return Target(wanted)
    return Target(begun, refusal=step_refusal(begun, wanted) or f"the control plane is made as {begun}, and {wanted} can follow once it is ready")


class Part(StrEnum):
    """What an upgrade of a control plane changes, in this order. Each is finished before the next begins."""

    ETCD = "etcd"
    API_SERVERS = "the API servers"
    MANAGERS = "controller-manager and scheduler"
    PHASES = "kubeadm's phases (configuration, CoreDNS, konnectivity agents)"


PART_ORDER = tuple(Part)


# -- the whole way


@dataclass(frozen=True)
class Path:
    """By which releases a control plane gets from one version to another.

    Attributes:
        steps: in their order, without the first version; empty if there is nothing to do.
        missing: minors between of which no release is installed (`v1.34`), and the version itself if it is not.
        refusal: why there is no way at all; "" otherwise.
    """

    steps: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it can be gone."""
        return not self.missing and not self.refusal


def path(current: str, wanted: str, installed: Iterable[str]) -> Path:
    """The way of a control plane: one minor at a time, by the newest installed patch version of each minor between; within a minor in one step.

    Raises:
        InvalidInput: `current` or `wanted` is no version.
    """
    old, new = Version.parse(current), Version.parse(wanted)
    there = sorted(map(Version.parse, installed))
    if new.major != old.major:
        return Path(refusal=f"{wanted} is of another major version than {current}")
    if new < old:
        return Path(refusal=step_refusal(current, wanted))
    if new == old:
        return Path()
    steps, missing = [], []
    for minor in range(old.minor + 1, new.minor):
        between = [version for version in there if (version.major, version.minor) == (old.major, minor)]
        if between:
            steps.append(str(between[-1]))
        else:
            missing.append(f"v{old.major}.{minor}")
    if new not in there:
        missing.append(str(new))
    return Path((*steps, str(new)), tuple(missing))


@dataclass(frozen=True)
class Stage:
    """A part of a whole upgrade: the control plane to a version, or the workers to one."""

    version: str
    workers: bool = False


def stages(current: str, steps: Sequence[str], workers: Sequence[str]) -> tuple[Stage, ...]:
    """The control plane's steps, with the workers between them only where a kubelet would otherwise be too old, and once at the end.

    So a node is drained once as long as at most three minors are gone. Workers of the last version are left alone; if all are, there is no such stage.

    Args:
        current: the control plane's version.
        steps: of its path; may be empty, if only workers are left behind.
        workers: the versions of the kubelets.

    Raises:
        InvalidInput: one of them is no version.
    """
    made: list[Stage] = []
    plane, last = current, (steps[-1] if steps else current)
    kubelets = [Version.parse(version) for version in workers]
    for step in steps:
        if kubelets and Version.parse(step).minors_after(min(kubelets)) > OLDEST_KUBELET:
            made.append(Stage(plane, workers=True))
            kubelets = [max(kubelet, Version.parse(plane)) for kubelet in kubelets]
        made.append(Stage(step))
        plane = step
    if any(kubelet < Version.parse(last) for kubelet in kubelets):
        made.append(Stage(last, workers=True))
    return tuple(made)


def drains(stages_: Iterable[Stage]) -> int:
    """How often each worker is drained, at most."""
    return sum(stage.workers for stage in stages_)


# -- skew


def kubelet_skew(kubelet: str, api_server: str, program: str = "kubelet") -> str:
    """Why a node's kubelet (or kube-proxy) does not go with an API server; "" if it does.

    Raises:
        InvalidInput: one of them is no version.
    """
    older = Version.parse(api_server).minors_after(Version.parse(kubelet))
    if older < 0:
        return f"its {program} {kubelet} is newer than the API server {api_server}, which Kubernetes does not support"
    if older > OLDEST_KUBELET:
        return f"its {program} {kubelet} is {older} minors older than the API server {api_server}, and {OLDEST_KUBELET} are supported"
    return ""


def kubectl_skew(kubectl: str, api_server: str) -> str:
    """Why a kubectl does not go with an API server; "" if it does.

    Raises:
        InvalidInput: one of them is no version.
    """
    apart = Version.parse(api_server).minors_after(Version.parse(kubectl))
    return f"kubectl {kubectl} is {abs(apart)} minors from the API server {api_server}, and {KUBECTL} is supported" if abs(apart) > KUBECTL else ""


# -- the order of nodes


class NodeState(StrEnum):
    """Of a node during an upgrade. Wire names."""

    PENDING = "Pending"
    RUNNING = "Running"
    DONE = "Done"
    FAILED = "Failed"
    SKIPPED = "Skipped"
    """It was asked to be left as it is."""


@dataclass(frozen=True)
class Worker:
    """A node that is to be upgraded."""

    name: str
    pool: str
    state: NodeState = NodeState.PENDING


@dataclass(frozen=True)
class Turn:
    """Which nodes are upgraded now.

    Attributes:
        begin: those that begin now, in their order.
        stopped: why no further one begins; "" while the upgrade goes on.
        canary: whether it is because the first ones are done, and a person must say that it goes on.
    """

    begin: tuple[str, ...] = ()
    stopped: str = ""
    canary: bool = False


def order(workers: Iterable[Worker], pools: Sequence[str] = (), nodes: Sequence[str] = ()) -> list[Worker]:
    """Pools in the order in which they are named, else by name; the same for nodes in their pool. Who names some leaves the others out."""
    chosen = [worker for worker in workers if (not pools or worker.pool in pools) and (not nodes or worker.name in nodes)]
    place = {name: number for number, name in enumerate(nodes)}
    pool = {name: number for number, name in enumerate(pools)}
    return sorted(chosen, key=lambda worker: (pool.get(worker.pool, 0), worker.pool, place.get(worker.name, 0), worker.name))


def turn(ordered: Sequence[Worker], at_once: int = 1, after_first: int = 0, *, resumed: bool = False) -> Turn:
    """The nodes whose turn it is. No further one begins after a failure; those that have begun are finished.

    Args:
        ordered: by `order`.
        at_once: how many are upgraded at the same time, at least 1.
        after_first: stop once so many are done, until a person resumes; 0: do not.
        resumed: whether a person has.
    """
    running = [worker for worker in ordered if worker.state is NodeState.RUNNING]
    failed = [worker.name for worker in ordered if worker.state is NodeState.FAILED]
    if failed:
        return Turn(stopped=f"the upgrade of {', '.join(failed)} failed")
    left = [worker.name for worker in ordered if worker.state is NodeState.PENDING]
    room = max(1, at_once) - len(running)
    if after_first and not resumed:
        begun = sum(worker.state in (NodeState.RUNNING, NodeState.DONE) for worker in ordered)
        if left and begun >= after_first and not running:
            return Turn(stopped=f"the first {after_first} are done, and the others wait until the upgrade is resumed", canary=True)
        room = min(room, after_first - begun)
    return Turn(tuple(left[: max(0, room)]))
