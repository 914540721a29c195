"""Feature gates and flags that stop a program of another release from starting are named, with the release; no other is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.api.platform import Options
from ckp.rules.upgrade_options import Used, of_command, of_configz, refused, switches, unknown

STEPS = ("v1.34.3", "v1.35.1")
OPTIONS = {
    "v1.33.7": Options(free_gates=("Alpha", "Beta", "Gone"), removed_flags={"kubelet": ("ancient",)}),
    "v1.34.3": Options(free_gates=("Alpha", "Beta"), locked_gates={"Gone": True}, removed_flags={"kubelet": ("cloud-config",)}),
    "v1.35.1": Options(free_gates=("Alpha",), locked_gates={"Beta": True}, removed_flags={"kubelet": ("pod-infra-container-image",)}),
}


def said(used: Used, steps: tuple[str, ...] = STEPS) -> list[str]:
    return [f"{found.where}: {found.message}" for found in refused(used, steps, OPTIONS)]


@pytest.mark.parametrize(
    ("gates", "steps", "message"),
    [
        ({"Alpha": True}, STEPS, ""),
        ({"Gone": True}, ("v1.34.3",), ""),
        ({"Gone": False}, STEPS, "Gone=false, and in v1.34 it can only be true"),
        ({"Gone": True}, STEPS, "Gone=true, which v1.35 does not know"),
        ({"Beta": True}, STEPS, ""),
        ({"Beta": False}, STEPS, "Beta=false, and in v1.35 it can only be true"),
        ({"Never": False}, STEPS, "Never=false, which v1.34 does not know"),
        ({"Never": False}, (), ""),
    ],
)
def test_a_gate_is_refused_at_the_first_release_that_would_not_start_with_it(gates: dict[str, bool], steps: tuple[str, ...], message: str) -> None:
    found = said(Used("n1", "kubelet", "v1.33.7", gates), steps)
    assert len(found) == bool(message) and all(message in text and text.startswith("n1: kubelet") for text in found)


@pytest.mark.parametrize(
    ("flag", "version", "steps", "line"),
    [
        ("cloud-config", "v1.33.7-ckp", STEPS, "v1.34"),
        ("cloud-config", "v1.33.7", ("v1.35.1",), "v1.34"),  # a node that skips a minor
        ("cloud-config", "v1.34.3", ("v1.35.1",), ""),  # it has started without it
        ("pod-infra-container-image", "v1.33.7", ("v1.34.3",), ""),
        ("pod-infra-container-image", "v1.34.3", ("v1.35.1",), "v1.35"),
        ("ancient", "v1.33.1", ("v1.33.7",), ""),  # within a minor nothing is removed
        ("node-ip", "v1.33.7", STEPS, ""),
    ],
)
def test_a_flag_is_refused_by_the_release_that_has_lost_it(flag: str, version: str, steps: tuple[str, ...], line: str) -> None:
    found = said(Used("n1", "kubelet", version, flags=(flag,)), steps)
    assert len(found) == bool(line) and all(f"--{flag}, which {line} does not have" in text for text in found)


def test_the_same_flag_of_another_program_is_none_of_the_kubelets() -> None:
    assert not said(Used("control plane", "kube-apiserver", "v1.33.7", flags=("cloud-config",)))


gate_names = st.sampled_from(("Alpha", "Beta", "Gone", "Never"))


@given(st.dictionaries(gate_names, st.booleans()), st.sampled_from([STEPS, STEPS[:1], STEPS[1:], ()]))
def test_exactly_what_a_release_on_the_way_would_not_take_is_refused_once(gates: dict[str, bool], steps: tuple[str, ...]) -> None:
    def takes(name: str, gate: str) -> bool:
        return gate in OPTIONS[name].free_gates or OPTIONS[name].locked_gates.get(gate) == gates[gate]

    expected = [gate for gate in sorted(gates) if not all(takes(name, gate) for name in steps)]
    assert [
        found.message.partition("feature gate ")[2].partition("=")[0] for found in refused(Used("n1", "kubelet", "v1.33.7", gates), steps, OPTIONS)
    ] == expected


def test_a_release_of_which_nothing_is_known_refuses_nothing_and_is_named() -> None:
    assert unknown(("v1.34.3", "v1.36.0"), OPTIONS) == ["v1.36.0"]
    assert not list(refused(Used("n1", "kubelet", "v1.35.1", {"Never": True}), ("v1.36.0",), OPTIONS))


def test_gates_and_flags_are_read_from_a_command_and_from_configz() -> None:
    command = ["kube-apiserver", "--feature-gates=A=true,B=false", "--profiling=false", "--feature-gates=C=1"]
    used = of_command("control plane", "v1.35.1", command)
    assert (used.program, used.gates, used.flags) == ("kube-apiserver", {"A": True, "B": False, "C": True}, ["feature-gates", "profiling", "feature-gates"])
    assert of_command("control plane", "v1.35.1", []).program == "" and switches(["", "nothing"]) == {}
    text = json.dumps({"kubeletconfig": {"featureGates": {"A": False}}})
    assert of_configz("n1", "v1.35.1", text) == Used("n1", "kubelet", "v1.35.1", {"A": False})
    assert of_configz("n1", "v1.35.1", '{"kubeletconfig": {}}').gates == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kubeletconfig": 1}', '{"kubeletconfig": {"featureGates": ["A"]}}'])
def test_what_is_no_answer_of_configz_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        of_configz("n1", "v1.35.1", text)
