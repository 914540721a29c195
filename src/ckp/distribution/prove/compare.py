"""What makes our programs the same as upstream's: their modules, toolchain and flags against what upstream declares, and what differs by intent.

`differs` is a finding that must be explained or corrected. `stamp` and `deliberate` are the differences that a program of ours has by its nature;
they are listed, each with both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ckp.catalog.models import Source, version_key
from ckp.distribution.builder.gobuildinfo import BuildInfo, Module, read_mod, read_sums
from ckp.distribution.builder.goflags import linker_flags
from ckp.distribution.prove.upstream import KUBERNETES, Upstream, download, run_time_defaults, tree_differences

Verdict = Literal["identical", "staging", "stamp", "deliberate", "not stated", "differs"]
STAMP = re.compile(r"""-X\s+'?([\w./-]+)=([^']*?)'?$""")
DELIBERATE = {
    ("kubelet", "CGO_ENABLED"): "one static program for every Linux; upstream does the same after v1.35 (kubernetes/kubernetes#135870)",
}
"""Differences by intent: (program, setting) -> why."""
DECISIVE = (
    "-tags",
    "-trimpath",
    "-race",
    "-msan",
    "-asan",
    "-buildmode",
    "-compiler",
    "-gcflags",
    "CGO_ENABLED",
    "GOOS",
    "GOARCH",
    "GOAMD64",
    "DefaultGODEBUG",
)
"""Settings of a build that decide what its result does."""


@dataclass(frozen=True)
class Check:
    """One comparison. `about` is module, lock, toolchain, flag, stamp, defaults or setting."""

    about: str
    name: str
    ours: str
    upstream: str
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """One program of ours beside upstream's."""

    program: str
    component: str
    main: Module
    go: str
    checks: tuple[Check, ...]

    @property
    def identical(self) -> bool:
        """Whether nothing differs except by intent."""
        return not self.findings("differs")

    def findings(self, *verdicts: Verdict) -> list[Check]:
        """The checks with one of these verdicts."""
        return [check for check in self.checks if check.verdict in verdicts]

    def about(self, about: str) -> list[Check]:
        """The checks of one kind."""
        return [check for check in self.checks if check.about == about]

    def to_json(self) -> dict[str, object]:
        """As `--format json` prints it."""
        return {
            "program": self.program,
            "component": self.component,
            "main": asdict(self.main),
            "go": self.go,
            "identical": self.identical,
            "checks": [asdict(check) for check in self.checks],
        }


def compare(program: str, info: BuildInfo, source: Source, stamp: str, upstream: Upstream, go: Path) -> Comparison:
    """A program's build info against its lock and against upstream's own files.

    Args:
        go: a go command, to read the lock's go.mod with.
    """
    checks = [
        *check_lock(info, source),
        *check_modules(info, upstream),
        check_toolchain(info, source, upstream),
        check_defaults(source, upstream, go),
        *check_flags(program, info, source, stamp, upstream),
        *check_stamps(source, stamp),
    ]
    return Comparison(program, f"{source.component} {source.version}", info.main, info.go, tuple(checks))


def check_lock(info: BuildInfo, source: Source) -> list[Check]:
    """Main module: one of those that the lock names, at the lock's hash; all others: at the hash of the lock's go.sum."""
    sums = read_sums((source.folder / "go.sum").read_text())
    named = info.main.replaces or str(info.main)
    inside = any(item in source.modules for item in (named, str(info.main)))
    checks = [Check("lock", "main module", named, ", ".join(source.modules), "identical" if inside else "differs")]
    for module in info.all_modules():
        pinned = sums.get((module.path, module.version), "")
        if not module.sum or module.sum != pinned:
            checks.append(Check("lock", str(module), module.sum or "no hash", pinned or "not in go.sum", "differs"))
    return checks


def check_modules(info: BuildInfo, upstream: Upstream) -> list[Check]:
    """Each module that is linked in: the version that upstream's go.mod asks for, with the hash that upstream's go.sum has."""
    checks = []
    for module in info.modules:
        original = module.replaces.rpartition("@")[0] or module.path
        path, version, inside = upstream.expected(original)
        pinned = upstream.sums.get((module.path, module.version), "")
        ours, theirs = f"{module} {module.sum}", f"{path}@{version}"
        if inside:
            same, note = (module.path, module.version) == (path, version), "a folder of upstream's tree, published by itself"
            checks.append(Check("module", original, ours, theirs, "staging" if same else "differs", note))
        elif not version:
            # go.mod files from before Go 1.17 do not name all that is linked; go.sum then still says what was.
            note = "" if pinned else "upstream's go.mod and go.sum do not name it"
            checks.append(Check("module", original, ours, f"{path} {pinned or 'not named'}", "identical" if pinned == module.sum else "differs", note))
        elif path == f"{KUBERNETES}/staging/src/{original}" and module.path == original:
            checks.append(Check("module", original, ours, theirs, "staging", "the folder of Kubernetes' tree at that commit, published by itself"))
        else:
            same = (module.path, module.version) == (path, version) and pinned == module.sum
            checks.append(
                Check("module", original, ours, f"{theirs} {pinned or upstream.sums.get((path, version), '')}".strip(), "identical" if same else "differs")
            )
    return checks


def check_toolchain(info: BuildInfo, source: Source, upstream: Upstream) -> Check:
    """The Go release: the lock's, and upstream's where its tree names one."""
    if info.go != source.go:
        return Check("toolchain", "Go", info.go, source.go, "differs", "the lock pins another")
    if not upstream.go:
        return Check("toolchain", "Go", info.go, "", "not stated", "upstream's tree names no release of Go")
    return Check("toolchain", "Go", info.go, upstream.go, "identical" if info.go == upstream.go else "differs")


def check_defaults(source: Source, upstream: Upstream, go: Path) -> Check:
    """Run-time defaults (GODEBUG) come from the main module's go.mod: ours is the lock's, and must lead to the same as upstream's."""
    ours = run_time_defaults(read_mod(go, source.folder / "go.mod"))
    # A toolchain gives no older defaults than its own version knows, and none that are newer than itself.
    newest = ".".join(source.go.split(".")[:2])
    ours, theirs = (min(value, newest, key=version_key) for value in (ours, upstream.godebug))
    return Check("defaults", "GODEBUG", f"go{ours}", f"go{theirs}", "identical" if ours == theirs else "differs")


def check_flags(program: str, info: BuildInfo, source: Source, stamp: str, upstream: Upstream) -> list[Check]:
    """Build flags against upstream's build script, where it is one that we can read (Kubernetes); else they are listed as they are."""
    flags = linker_flags(source, stamp)
    ours = {
        "-trimpath": info.settings.get("-trimpath", "false"),
        "-tags": info.settings.get("-tags", ""),
        "CGO_ENABLED": info.settings.get("CGO_ENABLED", ""),
        "-ldflags": " ".join(flag for flag in flags if not flag.startswith("-X")),
    }
    if upstream.module.path != KUBERNETES or "hack/lib/golang.sh" not in upstream.files:
        return [Check("flag", name, value, "", "not stated", "as in the lock") for name, value in sorted(ours.items())]
    theirs = kubernetes_flags(program, upstream.files["hack/lib/golang.sh"])
    return [_flag(program, name, ours[name], theirs.get(name, "")) for name in sorted(ours)]


def _flag(program: str, name: str, ours: str, theirs: str) -> Check:
    if sorted(re.split(r"[ ,]", ours)) == sorted(re.split(r"[ ,]", theirs)):
        return Check("flag", name, ours, theirs, "identical")
    why = DELIBERATE.get((program, name), "")
    return Check("flag", name, ours, theirs, "deliberate" if why else "differs", why)


def kubernetes_flags(program: str, script: str) -> dict[str, str]:
    """How hack/lib/golang.sh builds a program of a release: what it says for a build that is not for debugging.

    What is not found there is left out, and so shows as a difference.
    """
    flags: dict[str, str] = {}
    if tags := re.search(r'gotags="([\w,]*)\$\{grpcnotrace\}', script):
        extra = re.search(r'grpcnotrace=",(\w+)"', script)
        flags["-tags"] = ",".join([tags[1].strip(","), *([extra[1]] if extra else [])])
    if re.search(r'goflags\+=\("-trimpath"\)', script):
        flags["-trimpath"] = "true"
    if linker := re.search(r'goldflags="\$\{goldflags\} ([-\w ]+)"', script):
        flags["-ldflags"] = linker[1]
    if static := re.search(r"KUBE_STATIC_BINARIES=\(([^)]*)\)", script):
        flags["CGO_ENABLED"] = "0" if program in static[1].split() else "1"
    return flags


def check_stamps(source: Source, stamp: str) -> list[Check]:
    """The values that are linked in: the differences that a program shows to people."""
    checks = []
    for template in source.ldflags:
        ours, theirs = (STAMP.search(source.stamped(template, value)) for value in (stamp, source.version))
        if not ours or not theirs:
            continue
        note = ""
        if "{commit}" in template and not source.commit:
            note = "upstream's build has its commit here"
        elif "{date}" in template:
            note = "upstream's build has its own time here, ours that of the source"
        same = ours[2] == theirs[2] and not note
        checks.append(Check("stamp", ours[1], ours[2], "" if note else theirs[2], "identical" if same else "stamp", note))
    return checks


# -- beside a program that upstream has built --------------------------------------------------------------------------


def compare_programs(program: str, ours: BuildInfo, theirs: BuildInfo, upstream: Upstream | None = None) -> list[Check]:
    """Our program's build info beside that of one that upstream has built: every module and every setting that decides."""
    checks = []
    mine, other = _by_path(ours.modules), _by_path(theirs.modules)
    for path in sorted({*mine, *other}):
        first, second = mine.get(path), other.get(path)
        checks.append(_pair(path, first, second, upstream))
    same = ours.main.path == theirs.main.path and theirs.main.version in (ours.main.version, "(devel)", "")
    checks.append(Check("module", ours.main.path, str(ours.main), str(theirs.main), "identical" if same else "differs"))
    checks.append(Check("toolchain", "Go", ours.go, theirs.go, "identical" if ours.go == theirs.go else "differs"))
    for name in sorted({*ours.settings, *theirs.settings}):
        one, two = ours.settings.get(name, ""), theirs.settings.get(name, "")
        if one == two:
            verdict: Verdict = "identical"
        elif why := DELIBERATE.get((program, name), ""):
            checks.append(Check("setting", name, one, two, "deliberate", why))
            continue
        else:
            verdict = "differs" if name in DECISIVE and sorted(one.split(",")) != sorted(two.split(",")) else "not stated"
        checks.append(Check("setting", name, one, two, verdict))
    return checks


def _by_path(modules: Iterable[Module]) -> Mapping[str, Module]:
    return {module.replaces.rpartition("@")[0] or module.path: module for module in modules}


def _pair(path: str, first: Module | None, second: Module | None, upstream: Upstream | None) -> Check:
    if first is None or second is None:
        return Check("module", path, str(first or "not linked"), str(second or "not linked"), "differs")
    if (first.path, first.version, first.sum) == (second.path, second.version, second.sum):
        return Check("module", path, str(first), str(second), "identical")
    if upstream and not second.sum and upstream.expected(path) == (first.path, first.version, True):
        return Check("module", path, str(first), str(second), "staging", "a folder of upstream's tree, published by itself")
    return Check("module", path, f"{first} {first.sum}", f"{second} {second.sum}", "differs")


def compare_tree(info: BuildInfo, upstream: Upstream, tree: Path, go: Path) -> list[Check]:
    """Each module that is a folder of upstream's tree, as it was published, against that folder in a checkout: file by file.

    Args:
        tree: upstream's tree at the version of the main module; the folder with its go.mod.
    """
    checks = []
    for module in info.modules:
        original = module.replaces.rpartition("@")[0] or module.path
        folder, version = upstream.replaces.get(original, ("", ""))
        if not folder or version:
            continue
        differing = tree_differences(download(go, module), tree / folder)
        note = f"{len(differing)} files differ: {', '.join(differing[:5])}" if differing else "every file that is linked is the same"
        checks.append(Check("tree", original, str(module), folder, "differs" if differing else "identical", note))
    return checks


def table_rows(comparisons: Sequence[Comparison]) -> list[dict[str, str]]:
    """One row for each program."""
    rows = []
    for item in comparisons:
        modules, flags = item.about("module"), item.about("flag")
        staging = sum(check.verdict == "staging" for check in modules)
        good = sum(check.verdict in ("identical", "staging") for check in modules)
        rows.append(
            {
                "program": item.program,
                "component": item.component,
                "modules": f"{good}/{len(modules)}" + (f" ({staging} staging)" if staging else ""),
                "go": item.go + "".join(f" ({check.verdict})" for check in item.about("toolchain") if check.verdict != "identical"),
                "flags": _summary(flags),
                "stamps": str(len(item.findings("stamp"))),
                "verdict": "identical" if item.identical else f"{len(item.findings('differs'))} differ",
            }
        )
    return rows


def _summary(checks: Sequence[Check]) -> str:
    verdicts = sorted({check.verdict for check in checks})
    return ", ".join(verdicts)
