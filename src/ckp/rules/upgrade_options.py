"""Feature gates and flags that stop a program of another release from starting. Pure.

A gate that a program does not know, and a locked one that is set to anything but its value, end it before it serves (`unrecognized feature gate`, `feature is
locked`: component-base/featuregate/feature_gate.go, unsafeSetFromMap, v1.35.1); so does a flag that it does not know (pflag). A gate's name stays known for
three minors after it has become generally available (k8s.io/kubernetes pkg/features/kube_features.go), then it is gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ckp.api.platform import Options
from ckp.rules.upgrades import Version


@dataclass(frozen=True)
class Used:
    """What a program was started with by its owner, or by CKP.

    Attributes:
        where: the node, or the part of the control plane.
        program: such as `kubelet`.
        version: that it is of now.
        gates: that are set.
        flags: by name, without dashes.
    """

    where: str
    program: str
    version: str
    gates: Mapping[str, bool] = field(default_factory=dict)
    flags: Sequence[str] = ()


@dataclass(frozen=True)
class Refused:
    """A gate or a flag with which a program of another release does not start."""

    where: str
    message: str
    remedy: str
    is_gate: bool


def of_command(where: str, version: str, command: Sequence[str]) -> Used:
    """What a container's command sets: the program, then `--flag=value`."""
    words = [word[2:].partition("=") for word in command[1:] if word.startswith("--")]
    return Used(where, command[0] if command else "", version, switches([value for name, _, value in words if name == "feature-gates"]), [w[0] for w in words])


def switches(values: Iterable[str]) -> dict[str, bool]:
    """Gates in values of `--feature-gates`: `A=true,B=false`. What is none is left out: the program that runs has taken it."""
    pairs = (pair.partition("=") for value in values for pair in value.split(","))
    return {name.strip(): text.strip().lower() in ("true", "1", "t") for name, is_pair, text in pairs if is_pair}


def of_configz(where: str, version: str, text: str) -> Used:
    """What a kubelet says of its configuration at /configz: gates of its file, its drop-ins and its flags in one.

    Raises:
        ValueError: it is not that.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or not isinstance(data.get("kubeletconfig"), dict):
        raise ValueError("it has no kubeletconfig")
    gates = data["kubeletconfig"].get("featureGates") or {}
    if not isinstance(gates, dict):
        raise ValueError("its featureGates are no table")
    return Used(where, "kubelet", version, {str(name): value is True for name, value in gates.items()})


def refused(used: Used, steps: Sequence[str], options: Mapping[str, Options]) -> Iterator[Refused]:
    """What stops a program on its way through these releases; each gate and flag once, at the first release that refuses it.

    Args:
        steps: the releases that the program becomes of, in order.
        options: what is known of installed releases. One of which nothing is known refuses nothing here (`unknown` names it).
    """
    known = [(name, options[name]) for name in steps if options.get(name, Options()).free_gates]
    for gate, value in sorted(used.gates.items()):
        for name, of in known:
            line, setting = Version.parse(name).line, f"{gate}={str(value).lower()}"
            if gate not in of.free_gates and gate not in of.locked_gates:
                yield _gate(used, f"{used.program} is started with the feature gate {setting}, which {line} does not know: it would not start")
                break
            if of.locked_gates.get(gate, value) != value:
                message = f"{used.program} is started with the feature gate {setting}, and in {line} it can only be {str(not value).lower()}"
                yield _gate(used, f"{message}: it would not start")
                break
    for flag in sorted(set(used.flags)):
        if (gone := _gone(used, flag, steps, options)) is not None:
            message = f"{used.program} is started with --{flag}, which {gone.line} does not have: it would not start"
            yield Refused(used.where, message, "take it out of KUBELET_EXTRA_ARGS first" if used.program == "kubelet" else "take it out first", is_gate=False)


def _gate(used: Used, message: str) -> Refused:
    where = "the kubelet's configuration (kubeletconfiguration patches, drop-ins, KUBELET_EXTRA_ARGS)" if used.program == "kubelet" else "its options"
    return Refused(used.where, message, f"take it out of {where} first, and restart it", is_gate=True)


def _gone(used: Used, flag: str, steps: Sequence[str], options: Mapping[str, Options]) -> Version | None:
    """The release, after that of the program, up to the last step, which has lost a flag. Releases between count, too: a node may skip minors."""
    if not steps:
        return None
    old, new = Version.parse(used.version), Version.parse(steps[-1])
    between = sorted(version for name in options if old < (version := Version.parse(name)) <= new and version.minors_after(old) > 0)
    return next((version for version in between if flag in options[str(version)].removed_flags.get(used.program, ())), None)


def unknown(steps: Sequence[str], options: Mapping[str, Options]) -> list[str]:
    """Releases of which it is not known what their programs take."""
    return [name for name in steps if not options.get(name, Options()).free_gates]
