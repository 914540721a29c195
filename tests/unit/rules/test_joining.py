"""The line by which a machine becomes a host."""

from __future__ import annotations

import hashlib
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.kits.errors import InvalidInput
from ckp.rules import joining
from tests.worlds.tls import make_authority

CA = make_authority("site").pem
KEY = "ckphk_" + "k" * 43


def steps(line: str) -> list[str]:
    sudo, shell, option, script = shlex.split(line)
    assert (sudo, shell, option) == ("sudo", "sh", "-c")
    return script.split("; ")


def test_the_line_pins_the_ca_before_anything_else_is_trusted() -> None:
    found = steps(joining.line("192.0.2.202", CA.encode(), "default", "edge"))
    curl = 'curl -q -fsS -m 120 --retry 5 --capath /dev/null --noproxy "*"'
    assert found == [
        "set -e",
        "d=$(mktemp -d)",
        'trap "rm -rf $d" EXIT',
        'trap "exit 130" HUP INT TERM',
        "cd $d",
        f"{curl} -k -o ca.pem https://192.0.2.202:8443/v1/join/ca.pem",
        f'echo "{hashlib.sha256(CA.encode()).hexdigest()}  ca.pem" | sha256sum -c --quiet - || {{ echo "error: 192.0.2.202 has another CA than this line" >&2',
        "exit 1",
        "}",
        f"{curl} --cacert ca.pem -o join.sh https://192.0.2.202:8443/v1/join/join.sh",
        "sh join.sh --hub 192.0.2.202 --project default/edge",
    ]
    assert [step for step in found if " -k " in step] == found[5:6], "only what is compared is fetched without verification"


def test_a_proxy_serves_each_download_and_is_kept_by_the_host() -> None:
    found = steps(joining.line("hub.example", CA.encode(), "d", "p", joining.Proxy("http://proxy.example:3128", "10.0.0.0/8,.site.example")))
    assert all("-x http://proxy.example:3128" in step for step in found if step.startswith("curl"))
    assert found[-1].endswith("--proxy http://proxy.example:3128 --no-proxy 10.0.0.0/8,.site.example")


@pytest.mark.parametrize(
    ("url", "exceptions", "said"),
    [
        ("http://ada:secret@proxy.example:3128", "", "a proxy's password cannot be in the line"),
        ("https://proxy.example:3128", "", "is not the URL of a proxy"),
        ("http://proxy.example", "", "is not the URL of a proxy"),
        ("http://$(reboot):1", "", "is not the URL of a proxy"),
        ("http://proxy.example:3128", "a b", "is not a list of exceptions"),
        ("http://proxy.example:3128", "$(reboot)", "is not a list of exceptions"),
    ],
)
def test_what_is_no_proxy_is_refused(url: str, exceptions: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        joining.Proxy(url, exceptions)
    assert "secret" not in caught.value.render()


def test_the_fingerprint_is_of_the_certificates_alone() -> None:
    noisy = f"# the Root CA\n{CA.strip()}\n\n"
    assert joining.fingerprint(noisy.encode()) == joining.fingerprint(CA.encode()) == hashlib.sha256(joining.anchor(noisy.encode())).hexdigest()
    assert joining.fingerprint(make_authority("site").pem.encode()) != joining.fingerprint(CA.encode())
    with pytest.raises(InvalidInput, match="not a PEM file"):
        joining.fingerprint(b"nothing")


def test_a_hub_with_an_ipv6_address_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"2001:db8::1 is of IPv6"):
        joining.line("2001:db8::1", CA.encode(), "default", "edge")


@given(st.text(alphabet=st.characters(codec="ascii", categories=["L", "N"], include_characters="_-"), min_size=16, max_size=256))
def test_a_key_reaches_the_script_as_it_is(key: str) -> None:
    done = subprocess.run(["/bin/sh", "-c", joining.with_key("cat", key)], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == f"{key}\n"


@pytest.mark.parametrize("key", ["", "short", "k" * 257, "k" * 20 + "'; reboot", f"{KEY}\n"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput, match="not a pre-shared key"):
        joining.with_key("cat", key)
