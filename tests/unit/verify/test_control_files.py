"""Control files: what CKP takes, dpkg takes too and reads the same in it. dpkg-deb is the judge."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.control import RELATIONS, check_control
from ckp.verify.deb822 import Paragraph, parse_deb822, parse_lines
from tests.support.spoilt_packages import ar, tar_of

GOOD = {"Package": "kubelet", "Version": "1.35.1-ckp", "Architecture": "amd64", "Maintainer": "Coredge.io <a@b.c>", "Description": "x\n y"}
RELATION = st.sampled_from(
    [
        "ab",
        "ab, cd",
        "ab (>= 1)",
        "ab (>= 1) | cd",
        "ab(>=1)",
        "ab (>=1",
        "ab (> 1)",
        "ab (1)",
        "ab (>= )",
        "ab:any",
        "ab:any (>= 1)",
        "ab,",
        "ab,,cd",
        "",
        "ab | ",
        "ab\n , cd",
        "ab (>=\n 1)",
        "ab [amd64]",
        "a",
        "ab <x>",
        "ab (>= 1:)",
        "ab (= 1-)",
        "ab (= 0:1)",
        "${x}",
        "AB",
        "ab_c",
        "ab.c",
        "ab (>= 1) (<< 2)",
        "ab (== 1)",
        "ab ( = 1 )",
        "ab (=1.0-a:b)",
        "../ab",
    ]
)
VALUES: dict[str, st.SearchStrategy[str]] = {
    "Package": st.sampled_from(["kubelet", "../../evil", "Kube", "a", "ab", "k+x.y", "-x", "k_x", "", "x" * 201]) | st.text("ab.+-_/A", max_size=6),
    "Version": st.sampled_from(["1:1-1", "1-", "a1", "1.0~rc", "1 2", "1:", "1:2:3", "99999999999:1", "1.0-a:b", ""]) | st.text("019a.:+~-_", max_size=9),
    "Architecture": st.sampled_from(["all", "any", "AMD64", "am d", "", "-x", "x-y", "../x"]),
    "Maintainer": st.sampled_from(["", "x\n y", "a"]),
    "Description": st.sampled_from(["", "\n x", "a\n .\n b", "a\n ", "ä \u00a0"]),
    "Essential": st.sampled_from(["yes", "no", "maybe", "", "Yes"]),
    "Multi-Arch": st.sampled_from(["same", "foreign", "allowed", "x", "no", ""]),
    "Installed-Size": st.sampled_from(["12", "x", "", "-1", "1\n 2"]),
    "Priority": st.sampled_from(["optional", "foo bar", "", "x"]),
    "Section": st.sampled_from(["", "a b", "x\n y"]),
    **dict.fromkeys(("Bugs", "Homepage", "Origin", "Source", "X-Foo", "Optional", "Recommended", "Class"), st.sampled_from(["x", "x (1)", "", "x\n\ty"])),
    **dict.fromkeys(("Status", "Conffiles", "Filename", "Size", "Revision", "Config-Version", "Triggers-Awaited"), st.sampled_from(["x", "1", "\n /etc/x 00"])),
    **dict.fromkeys(RELATIONS, RELATION),
}
ENDS = st.sampled_from(["\n"] * 30 + ["\r\n", " \n", "\n\n", "\n \n", "\x1a\n", "\x0b\n", "\x0c\n"])


@st.composite
def control_files(draw: st.DrawFn) -> str:
    """A control file with a few fields that may be wrong, in any order and letter case."""
    fields = dict(GOOD)
    for label in draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3)):
        fields[label] = draw(VALUES[label])
    lines = []
    for label in draw(st.permutations(sorted(fields))):
        shown = draw(st.sampled_from([label] * 6 + [label.upper(), label.lower()]))
        lines.append(shown + draw(st.sampled_from([": "] * 12 + [":", " : ", ":\t"])) + fields[label] + draw(ENDS))
    text = draw(st.sampled_from([""] * 12 + ["\n", "#x\n", " \n"])) + "".join(lines)
    return text[:-1] if draw(st.integers(0, 20)) == 20 else text


def wrong(why: str) -> VerificationFailed:
    return VerificationFailed(why)


def read(text: str) -> Paragraph | None:
    """What CKP reads in a control file; None if it refuses it."""
    try:
        (fields,) = parse_deb822(text.encode(), wrong)
        check_control(fields, wrong)
    except (VerificationFailed, ValueError):
        return None
    return fields if fields["Maintainer"] else None


def squeezed(label: str, value: str) -> str:
    """A value without what means nothing: blanks, and of relations an epoch of 0, which dpkg leaves out."""
    plain = "".join(value.split())
    return plain.replace("(=0:", "(=") if label in RELATIONS else plain


def as_dpkg_reads_it(path: Path, text: str, labels: list[str]) -> list[str]:
    """The values of these fields, by dpkg-deb. CalledProcessError if it refuses the package."""
    control = gzip.compress(tar_of(("./control", text.encode())), mtime=0)
    path.write_bytes(ar([("debian-binary", b"2.0\n"), ("control.tar.gz", control), ("data.tar.gz", gzip.compress(tar_of(), mtime=0))]))
    form = "".join(f"${{{label}}}\x01" for label in labels)
    return subprocess.run(["dpkg-deb", "-W", f"--showformat={form}", path], capture_output=True, check=True, timeout=60).stdout.decode().split("\x01")[:-1]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(control_files(), min_size=25, max_size=25))
def test_what_is_good_dpkg_takes_and_reads_the_same(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "judged.deb"
    for text in texts:
        fields = read(text)
        if fields is not None:
            labels = list(fields)
            found = as_dpkg_reads_it(path, text, labels)
            assert [squeezed(label, value) for label, value in zip(labels, found, strict=True)] == [squeezed(label, fields[label]) for label in labels], text


def test_the_generated_control_files_are_not_all_refused() -> None:
    """If they were, the judge would have nothing to say. Each kind of field is in one that is taken."""
    for label in ("Recommends", "Breaks", "Essential", "Multi-Arch", "Homepage"):
        value = {"Essential": "yes", "Multi-Arch": "foreign", "Homepage": "x"}.get(label, "ab (>= 1)")
        text = "".join(f"{name}: {known}\n" for name, known in {label.lower(): value, **GOOD}.items())
        fields = read(text)
        assert fields is not None and fields[label] == value, label


@pytest.mark.parametrize("label", ["Conflicts", "Breaks", "Replaces", "Provides"])
def test_no_package_of_any_architecture_is_broken_or_replaced(label: str) -> None:
    """apt passes over such a relation, and dpkg does not."""
    for value, good in (("ab", True), ("ab:arm64", True), ("ab:any", False), ("ab, cd:any (= 1)", False)):
        assert (read("".join(f"{name}: {known}\n" for name, known in {label: value, **GOOD}.items())) is not None) == good, value
    assert read("".join(f"{name}: {known}\n" for name, known in {"Depends": "ab:any | cd:any (>= 1)", **GOOD}.items()))


@pytest.mark.parametrize("cut", [1, 7, 64])
def test_a_text_that_comes_in_pieces_reads_as_a_whole(cut: int) -> None:
    text = b"Package: a\nDescription: b\n c\n .\n\nPackage: d\n"
    pieces = [text[at : at + cut] for at in range(0, len(text), cut)]
    assert list(parse_lines(pieces, wrong)) == list(parse_deb822(text, wrong)) == [{"Package": "a", "Description": "b\nc\n."}, {"Package": "d"}]


def test_fields_are_found_in_any_letter_case_and_shown_as_they_are_written() -> None:
    (fields,) = parse_deb822(b"DEPENDS: a\nsha256: b\n", wrong)
    assert fields["Depends"] == "a" and "Sha256" in fields and fields.get("x") is None
    assert list(fields) == ["DEPENDS", "sha256"] and len(fields) == 2
