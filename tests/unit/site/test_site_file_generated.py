"""`site.yaml`, generated: what is valid is read as it was written; what is broken gives errors with lines, whatever it is, and soon."""

from __future__ import annotations

import copy
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ckp.site.spec.model import SiteSpec
from ckp.site.spec.read import SHOWN_ERRORS, InvalidSite, dump_site, parse_site
from ckp.site.spec.types import catalog_releases

FILE = Path("/srv/site/site.yaml")
ODD = (
    "no",
    "yes",
    "on",
    "012",
    "1e3",
    "0x1f",
    "1_000",
    "22:30",
    "2026-01-01",
    "true",
    "null",
    "~",
    ".5",
    "=",
    "<<",
    "- a",
    "a: b",
    "#",
    "",
    " x ",
    "é\u2028",
    "0o17",
    "%a",
)
labels = st.one_of(st.sampled_from(["no", "012", "1e3", "null", "on", "0x1f"]), st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True))
dns_names = st.builds(lambda parts: ".".join([*parts, "example"]), st.lists(labels, min_size=1, max_size=3))
files = st.builds(lambda parts: "/" + "/".join(parts), st.lists(st.from_regex(r"[A-Za-z0-9 _-][A-Za-z0-9 ._#'-]{0,8}", fullmatch=True), min_size=1, max_size=3))
host_paths = st.builds(lambda parts: "/" + "/".join(parts), st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,9}", fullmatch=True), min_size=1, max_size=3))
texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(ODD)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(-1e300, 1e300) | texts,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
    max_leaves=8,
)
ports = st.integers(1, 65535)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with any of these keys."""
    return st.fixed_dictionaries({}, optional=fields)


def one_of(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with exactly one of these keys."""
    return st.one_of(*(st.fixed_dictionaries({key: value}) for key, value in fields.items()))


backups = st.fixed_dictionaries(
    {"to": st.just({"path": "/b"}), "encryptFor": st.lists(files, min_size=1, max_size=2)},
    optional={"every": st.sampled_from(["5m", "90m", "1h0m1s"]), "keep": st.integers(1, 1000)},
)


@st.composite
def sites(draw: st.DrawFn) -> dict[str, Any]:
    """Data of a valid site: the hosts' network is 192.0.2.0/24, with the range of load balancers in its upper half."""
    network = IPv4Network("192.0.2.0/24")
    numbers = draw(st.lists(st.integers(2, 99), min_size=5, max_size=5, unique=True))
    names = draw(st.lists(labels, min_size=5, max_size=5, unique=True))
    count = draw(st.sampled_from([1, 3, 5]))
    ssh = optional(host=labels, user=labels, port=ports, configFile=files, identityFile=files, knownHostsFile=files)
    hosts = [{"name": name, "address": str(network[number]), **draw(optional(ssh=ssh))} for name, number in list(zip(names, numbers, strict=True))[:count]]
    if draw(st.booleans()):
        hosts[0] = {"name": hosts[0]["name"], "address": hosts[0]["address"], "local": True}
    installed = draw(st.booleans())
    services = [{"address": str(network[200 + number]), **draw(optional(names=st.lists(dns_names, max_size=2)))} for number in (0, 1)]
    of_owner = st.fixed_dictionaries({"className": dns_names})
    balancers = draw(
        of_owner
        if not installed
        else one_of(
            ciliumPool=st.just({"first": str(network[200]), "last": str(network[draw(st.integers(201, 254))])}),
            className=dns_names,
            onHosts=st.just([service["address"] for service in services]),
        )
    )
    nothing: st.SearchStrategy[dict[str, Any]] = st.just({})
    existing = st.fixed_dictionaries(
        {"existing": st.fixed_dictionaries({"address": st.just("r.example:5000")}, optional={"prefix": st.just("a/b"), "caFile": files})}
    )
    group = st.fixed_dictionaries({"name": labels}, optional={"description": st.just("a: b # no")})
    workers = optional(group=group) if installed else st.fixed_dictionaries({"systems": st.just(["debian-12"])}, optional={"group": group})
    api = draw(
        nothing if not installed else optional(names=st.lists(dns_names, max_size=2), certSANs=st.lists(dns_names | st.ip_addresses(v=4).map(str), max_size=2))
    )
    return {
        "apiVersion": "ckp.coredge.io/v1alpha1",
        "kind": "Site",
        "metadata": {"name": draw(labels)},
        "management": {"hosts": hosts} if installed else {"kubeconfig": draw(files)},
        "addresses": {
            "hosts": str(network),
            "loadBalancers": balancers,
            "api": {**api, "virtualAddress": "192.0.2.1"} if installed else api,
            "compass": services[0],
            "hub": services[1],
            **draw(optional(managementPods=st.just("10.0.0.0/12"), managementServices=st.just("172.16.0.0/12"))),
        },
        "registry": draw(
            existing
            if not installed
            else existing
            | one_of(
                own=st.fixed_dictionaries(
                    {"name": dns_names}, optional={"port": st.integers(1, 65534), "storage": host_paths.map(lambda path: f"/images{path}")}
                )
            )
        ),
        **({} if installed else {"workers": draw(workers)}),
        "releases": draw(st.lists(st.sampled_from(catalog_releases()), min_size=1, unique=True)),
        **draw(
            optional(
                storage=st.fixed_dictionaries(
                    {"etcd": one_of(path=host_paths.map(lambda path: f"/etcd{path}"), className=dns_names) if installed else of_owner}
                ),
                database=one_of(sqlite=st.just({}), postgresql=st.fixed_dictionaries({"urlFile": files})),
                network=optional(
                    proxy=st.just({"https": "http://p.example:3128", "noProxy": [".example"]}),
                    dns=st.just(["192.0.2.53"]),
                    timeServers=st.lists(dns_names, max_size=2, unique=True),
                    caFiles=st.lists(files, max_size=2),
                ),
                trust=optional(keyringFile=files, fingerprints=st.just(["0" * 40])),
                **({"backup": backups, "workers": workers, "hostSettings": st.dictionaries(texts, values, max_size=3)} if installed else {}),
                addonValues=st.dictionaries(texts, st.dictionaries(texts, values, max_size=2), max_size=2),
            )
        ),
    }


@given(sites())
@settings(max_examples=150)
def test_a_valid_site_is_read_as_it_was_written(data: dict[str, Any]) -> None:
    spec = SiteSpec.model_validate(data)
    text = dump_site(spec)
    assert parse_site(text.encode(), FILE) == spec
    assert isinstance(yaml.safe_load(text), dict), "other readers of YAML read it as well"


def places(node: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places of a tree."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place, *(found for key, value in below for found in places(value, (*place, key)))]


def check_errors(error: InvalidSite, text: str) -> None:
    """Every error is in the file, in order, with something to do."""
    last = max(1, text.count("\n") + (not text.endswith("\n")))
    marks = [(item.mark.line, item.mark.column) for item in error.found]
    assert marks and marks == sorted(marks) and all(1 <= line <= last and column >= 1 for line, column in marks)
    assert all(item.finding.what and item.finding.remedy for item in error.found)
    assert error.exit_code == 2 and len(error.details.splitlines()) == min(len(marks), SHOWN_ERRORS + 1)


WRONG = st.sampled_from(["gone", "renamed", "list", "mapping", "text", "null", "number", "huge"])
REPLACED: dict[str, Any] = {"list": [["x"]], "mapping": {"x": {"y": 1}}, "text": "-?&*", "null": None, "number": -1.5, "huge": "9" * 6000}


@given(sites(), WRONG, st.data())
@settings(max_examples=200)
def test_a_broken_key_gives_errors_with_lines_or_is_still_a_site(data: dict[str, Any], wrong: str, draw: st.DataObject) -> None:
    broken = copy.deepcopy(data)
    place = draw.draw(st.sampled_from([place for place in places(data) if place]))
    parent = broken
    for step in place[:-1]:
        parent = parent[step]
    if wrong == "gone":
        del parent[place[-1]]
    elif wrong == "renamed" and isinstance(parent, dict):
        parent[f"{place[-1]}Xq"] = parent.pop(place[-1])
    else:
        parent[place[-1]] = REPLACED.get(wrong, "Xq")
    text = yaml.safe_dump(broken, sort_keys=False)
    try:
        parse_site(text.encode(), FILE)
    except InvalidSite as error:
        check_errors(error, text)
    else:  # what may be absent can be taken away, and what has no type of ours can be anything; but no key has another name
        assert wrong != "renamed" or not isinstance(parent, dict) or place[0] in ("hostSettings", "addonValues")


@given(st.text(max_size=300) | st.text("-:[]{}#&*!|>'\"%@`,? \n\tab1~<=.\\x", max_size=200))
@settings(max_examples=400)
def test_any_text_gives_errors_with_lines(text: str) -> None:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = text.encode(errors="surrogatepass")
    with pytest.raises(InvalidSite) as caught:
        parse_site(data, FILE)
    check_errors(caught.value, text)


@given(st.binary(max_size=200))
def test_any_bytes_give_errors(data: bytes) -> None:
    with pytest.raises(InvalidSite) as caught:
        parse_site(data, FILE)
    assert caught.value.found


PIECES = {
    "open brackets": "[",
    "open braces": "{",
    "dashes": "- ",
    "keys on a line": "a: ",
    "the same key": "a: b\n",
    "commas": "[a,",
    "comments": "#\n",
    "explicit keys": "? ",
    "lines of text": "a\n",
    "documents": "---\n",
    "directives": "%a\n",
    "anchors": "&a ",
    "tags": "!",
    "escapes": '"\\x41',
    "tabs": "\t",
    "lists over lines": "[\n",
}


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES.keys())
def test_what_is_repeated_takes_time_as_its_length_does(piece: str) -> None:
    def seconds(size: int) -> float:
        data = (piece * (size // len(piece))).encode()
        begun = time.process_time()
        with pytest.raises(InvalidSite):
            parse_site(data, FILE)
        return time.process_time() - begun

    small = min(seconds(16 << 10) for _ in range(2))
    assert seconds(128 << 10) < 8 * 4 * small + 0.5, "eight times as long took more than 32 times as long"


def test_values_of_any_length_take_time_as_their_length_does() -> None:
    begun = time.process_time()
    for piece in ("://", "://a:", "://?", "?token", "-----BEGIN ", "a-", "1.", "@"):
        for head, tail in (('metadata: {name: "', '"}'), ('addonValues: {a: {b: "', '"}}'), ('"', '": 1')):
            with pytest.raises(InvalidSite):
                parse_site(f"{head}{piece * ((256 << 10) // len(piece))}{tail}".encode(), FILE)
    assert time.process_time() - begun < 30


def test_the_model_holds_typed_values() -> None:
    spec = parse_site(dump_site(SiteSpec.model_validate(EXAMPLE)).encode(), FILE)
    assert spec.addresses.hub.address == IPv4Address("192.0.2.201") and spec.workers is not None and spec.workers.systems == ("debian-12",)


EXAMPLE = {
    "apiVersion": "ckp.coredge.io/v1alpha1",
    "kind": "Site",
    "metadata": {"name": "a"},
    "management": {"kubeconfig": "/k"},
    "addresses": {"hosts": "192.0.2.0/24", "loadBalancers": {"className": "a"}, "compass": {"address": "192.0.2.200"}, "hub": {"address": "192.0.2.201"}},
    "registry": {"existing": {"address": "r.example"}},
    "workers": {"systems": ["debian-12"]},
}
