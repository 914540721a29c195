"""The protocol of hub and agent, protocol 1: the agent's own copy of ckp.api.host_protocol as plain dataclasses.

A contract test (tests/contract/test_agent_messages.py) holds the two together, field by field.
"""

from __future__ import annotations

import functools
import json
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Dict, Optional, Tuple, Type, TypeVar

PROTOCOL = 1
MAX_FRAME_BYTES = 1 << 20
REPORT_SECONDS = 20.0
JOURNAL_SENT = 50
"""Entries of the journal in a Report; the host keeps more."""

PHASES = (
    "Free",
    "Preflight",
    "Pulling",
    "Verifying",
    "Preparing",
    "Installing",
    "Fetching",
    "Prepared",
    "Joining",
    "Checking",
    "Joined",
    "Resetting",
    "Failed",
)
UPGRADE_STATES = ("Preparing", "Prepared", "Installing", "Checking", "RollingBack", "Done", "Failed")
UPGRADE_NODE = "upgrade-node"
FEATURES = (UPGRADE_NODE,)
"""What this agent can do beyond 0.3.0; sent with its facts."""
T = TypeVar("T")


class MalformedMessage(ValueError):
    """A frame does not follow the protocol; the message names the field."""


@dataclass(frozen=True)
class DiskFacts:
    """A whole disk."""

    name: str
    size_bytes: int
    rotational: bool = False


@dataclass(frozen=True)
class LinkFacts:
    """A network link."""

    name: str
    mac: str = ""
    mtu: int = 0
    speed_mbps: int = 0
    up: bool = False


@dataclass(frozen=True)
class Finding:
    """What preflight found on this host, and its remediation (in 0.2.0 `mend`: for one release both names are written, and either is read)."""

    problem: str
    remediation: str = ""
    blocking: bool = True
    mend: str = ""

    def __post_init__(self) -> None:
        text = self.remediation or self.mend
        object.__setattr__(self, "remediation", text)
        object.__setattr__(self, "mend", text)


@dataclass(frozen=True)
class HostFacts:
    """What a host reports about itself."""

    hostname: str
    machine_id: str
    os_id: str
    os_version: str
    kernel: str
    architecture: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    addresses: Tuple[str, ...] = ()
    default_address: str = ""
    cgroup: str = "v2"
    swap: bool = False
    agent_version: str = ""
    disks: Tuple[DiskFacts, ...] = ()
    links: Tuple[LinkFacts, ...] = ()
    installed: Tuple[str, ...] = ()
    findings: Tuple[Finding, ...] = ()
    clock: float = 0.0
    features: Tuple[str, ...] = ()
    kubelet_flags: Tuple[str, ...] = ()


@dataclass(frozen=True)
class EnrolmentRequest:
    """A host's first request."""

    psk: str = field(repr=False)
    facts: HostFacts
    csr: str
    protocol: int = PROTOCOL
    domain: str = "default"
    project: str = "default"


@dataclass(frozen=True)
class EnrolmentTicket:
    """Where to ask for the outcome, and the token that only this agent has."""

    request_id: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class EnrolmentStatus:
    """`approved` has the client certificate, the CA, and the host's name."""

    state: str
    reason: str = ""
    host: str = ""
    certificate: str = ""
    ca: str = ""


@dataclass(frozen=True)
class BundleRef:
    """A bundle in a registry, by digest."""

    image: str
    tag: str
    release: str
    registry_ca: str = ""


@dataclass(frozen=True)
class JoinFile:
    """A file of the bootstrap data."""

    path: str
    content: str = field(repr=False)
    mode: str = "0600"


@dataclass(frozen=True)
class NodeUpgrade:
    """Another release for a host that is a node already; `phase` is prepare or install."""

    request: str
    release: str
    bundle: BundleRef
    phase: str


@dataclass(frozen=True)
class Membership:
    """Everything that a host needs to be a node of one cluster."""

    cluster: str
    machine: str
    node_name: str
    provider_id: str
    release: str
    bundle: BundleRef
    sandbox_image: str
    registry: str
    files: Tuple[JoinFile, ...] = ()
    join_config: str = ""
    images: Tuple[str, ...] = ()
    pre_commands: Tuple[str, ...] = ()
    post_commands: Tuple[str, ...] = ()
    registry_ca: str = ""
    node_labels: Tuple[str, ...] = ()
    node_taints: Tuple[str, ...] = ()
    allow_downgrade: bool = False
    image_fetch_seconds: float = 0.0
    upgrade: Optional[NodeUpgrade] = None

    def key(self) -> str:
        """The identity of this membership. A change of any other field never makes a host leave and join again."""
        return f"{self.cluster}|{self.machine}|{self.provider_id}"


@dataclass(frozen=True)
class AgentTarget:
    """The version of the agent that is to run on this host."""

    version: str
    image: str
    fallback_image: str = ""
    registry_ca: str = ""
    confirm_seconds: float = 0.0


@dataclass(frozen=True)
class RegistryLogin:
    """How a host pulls from the registry, where that asks for a password."""

    registry: str
    basic: str = field(repr=False)


@dataclass(frozen=True)
class Desired:
    """The complete desired state of one host."""

    generation: int
    host: str
    membership: Optional[Membership] = None
    agent: Optional[AgentTarget] = None
    report_seconds: float = REPORT_SECONDS
    registry_login: Optional[RegistryLogin] = None
    type: str = "desired"


@dataclass(frozen=True)
class RenewalDue:
    """The hub asks for a Renewal."""

    type: str = "renewal-due"


@dataclass(frozen=True)
class IssuedCertificate:
    """The answer to a Renewal."""

    certificate: str
    ca: str
    type: str = "certificate"


@dataclass(frozen=True)
class Renewal:
    """A CSR for a new key, sent only after RenewalDue."""

    csr: str
    type: str = "renewal"


@dataclass(frozen=True)
class Hello:
    """The agent's first frame on the channel, sent again whenever its facts have changed."""

    boot_id: str
    facts: HostFacts
    type: str = "hello"
    protocol: int = PROTOCOL


@dataclass(frozen=True)
class JournalEntry:
    """One event of a step on the host."""

    at: str
    step: str
    outcome: str
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class UpgradeReport:
    """How far a NodeUpgrade is: one of UPGRADE_STATES. Done and Failed are final for this request."""

    request: str
    release: str
    state: str
    reason: str = ""
    message: str = ""
    restored: bool = False
    at: str = ""


@dataclass(frozen=True)
class Report:
    """The observed state of one host."""

    generation: int
    phase: str
    cluster: str = ""
    machine: str = ""
    release: str = ""
    reason: str = ""
    message: str = ""
    attempts: int = 0
    journal: Tuple[JournalEntry, ...] = ()
    upgrade: Optional[UpgradeReport] = None
    type: str = "report"


def to_json(message: Any) -> str:
    """A message as the text of one frame."""
    return json.dumps(asdict(message), separators=(",", ":"), ensure_ascii=False)


def from_json(kind: Type[T], text: str | bytes) -> T:
    """Read a message. Unknown fields are ignored, missing or mistyped ones raise MalformedMessage with the field's name."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{kind.__name__}: not JSON: {error}") from None
    return decode(kind, data)


FROM_HUB: Tuple[Type[Any], ...] = (Desired, RenewalDue, IssuedCertificate)


def from_hub(text: str | bytes) -> Any:
    """Read one of FROM_HUB by its `type`. MalformedMessage for anything else, such as a type that only newer agents know."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"a frame is not JSON: {error}") from None
    name = data.get("type", Desired.type) if isinstance(data, dict) else None
    kind = next((kind for kind in FROM_HUB if kind.type == name), None)
    if kind is None:
        raise MalformedMessage(f"frames of the type {name!r} are not known to this agent")
    return decode(kind, data)


@functools.lru_cache(maxsize=None)
def _hints(kind: Any) -> Dict[str, Any]:
    """Cached: annotations are text, and evaluating them costs more than everything else about a message."""
    return typing.get_type_hints(kind)


def decode(kind: Type[T], data: Any, where: str = "") -> T:
    """Make a dataclass from parsed JSON; see from_json."""
    name = where or kind.__name__
    if not isinstance(data, dict):
        raise MalformedMessage(f"{name}: an object is expected")
    hints = _hints(typing.cast(Any, kind))
    values = {}
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name in data:
            values[item.name] = _value(hints[item.name], data[item.name], f"{name}.{item.name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise MalformedMessage(f"{name}.{item.name} is missing")
    if "type" in hints and values.get("type", kind.type) != kind.type:  # type: ignore[attr-defined]
        raise MalformedMessage(f"{name}.type is {values['type']!r}")
    return kind(**values)


def _value(hint: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Union:  # only Optional[X] is used
        inner = [part for part in typing.get_args(hint) if part is not type(None)][0]
        return None if data is None else _value(inner, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise MalformedMessage(f"{where}: a list is expected")
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, part, f"{where}[{index}]") for index, part in enumerate(data))
    if is_dataclass(hint):
        return decode(hint, data, where)  # type: ignore[arg-type]
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, hint) or (hint is int and isinstance(data, bool)):
        raise MalformedMessage(f"{where}: a value of type {hint.__name__} is expected")
    return data
