"""The main path of a standalone installation: preflight, then the twelve steps. A second run continues an interrupted one."""

from __future__ import annotations

import os
import sys
import time
from typing import Callable, Sequence

from ckp.agent.fetch.copies import drop_copy
from ckp.agent.journal import Journal, Member
from ckp.agent.system.installers.detect import of_host
from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hostkit.files import read_text
from ckp.hostkit.locations import STANDALONE_JOURNAL
from ckp.hostkit.text import printable
from ckp.standalone import checks, options, steps
from ckp.standalone.cluster import ADMIN
from ckp.standalone.options import Options
from ckp.standalone.steps import STEPS, Context, Step

RUNTIME_STEP = "runc"
INDENT = " " * 9


def journal_of(state_dir: str) -> Journal:
    """The journal of a standalone installation; the agent has another one beside it."""
    return Journal(os.path.join(state_dir, STANDALONE_JOURNAL), os.path.join(state_dir, "standalone-saved"))


class Screen:
    """Progress as `[ 3/12] containerd … done 2.1s`: one line per step, with further lines between."""

    def __init__(self, total: int, write: Callable[[str], object] | None = None) -> None:
        self.total = total
        self._write = write or self._stdout
        self._open = False
        self._has_lines = False

    @staticmethod
    def _stdout(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def begin(self, number: int, title: str) -> None:
        """Begin a step."""
        self._write(f"[{number:>2}/{self.total}] {title} … ")
        self._open, self._has_lines = True, False

    def say(self, text: str) -> None:
        """Print a line within the step."""
        self._write(("\n" if self._open and not self._has_lines else "") + f"{INDENT}{printable(text)}\n")
        self._has_lines = True

    def end(self, outcome: str, seconds: float, note: str = "") -> None:
        """End the step."""
        self._write((INDENT if self._has_lines else "") + f"{outcome} {seconds:.1f}s" + (f"  ({printable(note)})" if note else "") + "\n")
        self._open, self._has_lines = False, False

    def line(self, text: str = "") -> None:
        """Print a line outside of the steps."""
        self._write(("\n" if self._open and not self._has_lines else "") + printable(text) + "\n")
        self._open, self._has_lines = False, False


def install(chosen: Options, *, screen: Screen | None = None, plan: Sequence[Step] = STEPS) -> None:
    """Make this host a cluster. Resumable.

    Raises:
        AgentError: before the first step, nothing was changed. Later, the message names the step, the cause and the remediation, and a
            second call continues with that step.
    """
    screen = screen or Screen(len(plan))
    options.check(chosen)
    refuse_managed(chosen.state_dir)
    journal = journal_of(chosen.state_dir)
    if journal.member is not None:
        check_same(journal.member, chosen.member(journal.member.release))
        if all(step.name in journal.done for step in plan):
            screen.line(f"this host is already a standalone cluster ({journal.member.release}); nothing was changed")
            screen.line(f"  kubeconfig  {ADMIN}")
            return
        screen.line(f"continuing an interrupted installation: {len(journal.done)} of {len(plan)} steps are done")
    installer = of_host()
    context = Context(chosen, journal, installer, screen.say)
    if journal.member is None:
        findings = checks.preflight_findings(chosen, journal, installer)
        findings.raise_if_any("this host can't become a cluster")
        for item in findings.items:
            screen.line(f"note: {item.problem}: {item.remediation}")
    started = time.monotonic()
    run_steps(context, screen, plan)
    finished(screen, context, time.monotonic() - started)


def run_steps(context: Context, screen: Screen, plan: Sequence[Step]) -> None:
    """Do the steps that are not done yet, and always the verification. Raises AgentError."""
    journal = context.journal
    for number, step in enumerate(plan, 1):
        if step.name in journal.done and step.name != "verify":
            screen.begin(number, step.title)
            screen.end("done before", 0.0)
            continue
        _run_step(context, screen, step, number)
        if step.name == RUNTIME_STEP:
            steps.start_pulls(context)
    if context.options.bundle_folder:
        drop_copy(context.options.state_dir)


def _run_step(context: Context, screen: Screen, step: Step, number: int) -> None:
    journal = context.journal
    screen.begin(number, step.title)
    begun = time.monotonic()
    try:
        note = step.do(context)
        if journal.member is None:  # only now: the first step (verification) changes nothing on the host
            journal.begin(context.options.member(context.verified().release))
    except AgentError as error:
        seconds = time.monotonic() - begun
        screen.end("FAILED", seconds)
        if journal.member is not None:
            journal.record(step.name, "failed", seconds, error.sentence())
            error.brief = f"step {number} of {screen.total} ({step.title}): {error.brief}"
            error.resolution = error.resolution or "fix the cause and run the same command again: it continues with this step"
        raise
    seconds = time.monotonic() - begun
    journal.finish_step(step.name, seconds, note)
    screen.end("done", seconds, note)


def finished(screen: Screen, context: Context, seconds: float) -> None:
    """Print what was installed, and what to do next."""
    manifest = context.verified()
    screen.line()
    screen.line(f"The cluster is ready: {manifest.release} ({manifest.version}), in {seconds:.0f} s.")
    screen.line(f"  kubeconfig  {ADMIN}")
    screen.line(f"  try         kubectl --kubeconfig {ADMIN} get nodes -o wide")
    screen.line("  undo        ckp-agent standalone reset")
    for line in manifest.stand_ins:
        screen.line(f"  stand-in    {line}")


def check_same(begun: Member, wanted: Member) -> None:
    """The installation that was begun has the wanted bundle and settings. InvalidInput if not."""
    then, now = {"bundle": begun.bundle, **begun.settings}, {"bundle": wanted.bundle, **wanted.settings}
    different = [
        f"{name}: {then.get(name) or '(default)'} then, {now.get(name) or '(default)'} now"
        for name in dict.fromkeys([*now, *then])
        if then.get(name, "") != now.get(name, "")
    ]
    if different:
        raise InvalidInput(
            "an installation or a join with other settings was begun on this host",
            details="\n".join(different),
            resolution="use the same settings to continue it, or run `ckp-agent standalone reset` and begin again",
        )


def refuse_managed(state_dir: str) -> None:
    """InvalidInput if this host is a node of a workload cluster: the hub manages it."""
    import json

    try:
        member = json.loads(read_text(os.path.join(state_dir, "journal.json"), "{}")).get("member")
    except ValueError:
        member = {"cluster": "?"}
    if member:
        raise InvalidInput(
            f"this host is a node of the workload cluster {member.get('cluster', '?')}", resolution="remove it from that cluster first, or use another host"
        )


def reset(state_dir: str, *, screen: Screen | None = None, force: bool = False) -> None:
    """Undo a standalone installation, complete or not.

    Raises:
        InvalidInput: this host has none (with `force` it is reset all the same), or is a node of a workload cluster.
            A master of several leaves etcd and its cluster first, as far as the others can be reached; what stays there is printed.
        AgentError: something could not be removed; it is listed in the details.
    """
    from ckp.agent.fetch.bundles import drop_other_bundles
    from ckp.agent.node.reset import NOTHING
    from ckp.agent.node.reset import reset as clean
    from ckp.standalone import members
    from ckp.standalone.address import unit

    screen = screen or Screen(1)
    refuse_managed(state_dir)
    journal = journal_of(state_dir)
    if journal.member is None and not force:
        raise InvalidInput("this host is not a standalone cluster: there is nothing to undo", resolution="use --force to reset it all the same")
    begun = time.monotonic()
    screen.begin(1, "Reset")
    unit.stop()
    steps.end_kubeadm()
    stays = members.leave(journal, steps.own_address(journal), screen.say)
    try:
        note = clean(journal, of_host()) if force or journal.touched else NOTHING
    except AgentError:
        screen.end("FAILED", time.monotonic() - begun)
        raise
    journal.forget()
    drop_other_bundles(state_dir, "")
    screen.end("done", time.monotonic() - begun, note)
    for line in stays:
        screen.line(f"what stays: {line}")
