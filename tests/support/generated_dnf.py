"""Dnf repositories as hypothesis makes them: signed well, and written in many ways, some of which readers take differently."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from hypothesis import strategies as st

from ckp.verify import rpmfile
from ckp.verify.rpmtags import COMPARISONS, RELATIONS
from tests.support.generated_apt import PACKERS, Pick
from tests.support.spoilt_packages import Rpm, Sign, numbers, text, texts

COMMON = "http://linux.duke.edu/metadata/common"
RPM = "http://linux.duke.edu/metadata/rpm"
REPO = "http://linux.duke.edu/metadata/repo"
FILELISTS = "http://linux.duke.edu/metadata/filelists"
Dependency = tuple[str, int, str]
"""Name, flags of the header, version."""


@dataclass(frozen=True)
class Built:
    """A signed rpm, and what it was made of."""

    path: str
    rpm: Rpm
    epoch: int
    relations: Mapping[str, Sequence[Dependency]]
    raw: bytes = field(repr=False)


def pool(sign: Sign) -> list[Built]:
    """Packages with all kinds of relations and files, and some whose versions are equal though they are written otherwise."""
    made = []
    for name, version, architecture, epoch, relations in (
        ("kubelet", "1.35.1", "x86_64", 0, {"requires": [("cri-tools", 12, "1.27.0"), ("/bin/sh", 0, ""), ("(iproute2 or (iproute if x))", 0, "")]}),
        ("kubelet", "1.35.2", "x86_64", 0, {"requires": [("rpmlib(CompressedFileNames)", 10, "3.0.4-1"), ("kubelet", 8, "1.35.2-ckp"), ("a b", 0, "")]}),
        ("kubectl", "1.35.1", "x86_64", 1, {"provides": [("kubectl", 8, "1:1.35.1-ckp"), ("kc", 8, "0:1")], "obsoletes": [("kubectl-old", 2, "5-1")]}),
        ("kubectl", "1.35_1", "x86_64", 1, {"conflicts": [("a", 4, "2:1-1"), ("b&<>'\"", 10, "1~rc1^x")], "suggests": [("s", 0, "")]}),
        ("libckp", "1.0", "x86_64", 0, {"recommends": [("r", 0, "")], "supplements": [("(s and t)", 0, "")], "enhances": [("e\u00e4", 8, "1")]}),
        ("libckp", "1.0", "noarch", 0, {}),
        ("ckp-data", "2.1~a1", "noarch", 0, {"provides": [("ckp-data", 8, "2.1~a1-ckp"), ("x(y)(64bit)", 0, "")]}),
    ):
        tags = {rpmfile.SOURCE_RPM: text(f"{name}-1-ckp.src.rpm"), **({rpmfile.EPOCH: numbers(epoch)} if epoch else {})}
        for kind, found in relations.items():
            numbered = RELATIONS[kind]
            tags[numbered.names] = texts(*(entry[0] for entry in found))
            tags[numbered.flags] = numbers(*(entry[1] for entry in found))
            tags[numbered.versions] = texts(*(entry[2] for entry in found))
        folder = f"/usr/share/{name}/"
        files = (("/usr/bin/", name, 0o100755, ""), ("/usr/share/", name, 0o040755, ""), (folder, "a b&c", 0o100644, ""), (folder, "link", 0o120777, "a b&c"))
        rpm = Rpm(name=name, version=version, architecture=architecture, files=files, tags=dict(sorted(tags.items())))
        made.append(Built(f"Packages/{name}-{version}-ckp.{architecture}.rpm", rpm, epoch, relations, rpm.build(sign)))
    return made


# -- XML


@dataclass(frozen=True)
class Writer:
    """Writes XML, now and then in a form that is seldom seen."""

    pick: Pick

    def text(self, value: str) -> str:
        plain = escape(value)
        middle = len(plain) // 2
        parts = (value[: len(value) // 2], value[len(value) // 2 :])
        first, second = (escape(part) for part in parts)
        return self.pick.mostly(
            plain,
            "".join(f"&#x{ord(letter):x};" for letter in value),
            f"<![CDATA[{value}]]>",
            f"{first}<![CDATA[{parts[1]}]]>",
            f"{first}<!-- evil -->{second}",
            f"{first}<?evil?>{second}",
            f"{first}<x/>{second}",
            f"{first}<x>evil</x>",
            f"<x>evil</x>{plain}",
            f"{plain}<x/>evil",
            f" {plain}\n",
            plain[:middle] + "\n" + plain[middle:],
            plain + "\u200b",
            f"{plain}&evil;",
        )

    def attributes(self, values: Mapping[str, str]) -> str:
        pick = self.pick
        names = pick.draw(st.permutations(sorted(values))) if pick.rarely() else list(values)
        found = []
        for name in names:
            value = escape(values[name], {'"': "&quot;", "'": "&#39;"})
            value = pick.mostly(value, f" {value}", "".join(f"&#{ord(letter)};" for letter in values[name]), f"{value}\t")
            found.append(pick.mostly(f'{name}="{value}"', f"{name}='{value}'", f'{name} = "{value}"', f'\n{name}="{value}"'))
        if values and pick.rarely():
            found.append(
                pick.draw(st.sampled_from(['evil="1"', 'xml:base="http://evil/"', f'{names[0]}="evil"', 'xmlns="urn:x"', 'xmlns:rpm="urn:x"', 'rpm:ver="9"']))
            )
        return "".join(f" {part}" for part in found)

    def element(self, name: str, values: Mapping[str, str] | None = None, content: str = "") -> str:
        pick = self.pick
        shown = pick.mostly(name, f"x:{name}", f"rpm:{name}", name.rpartition(":")[2], name.upper())
        start = f"<{shown}{self.attributes(values or {})}"
        whole = pick.mostly(f"{start}/>", f"{start}></{shown}>") if not content else f"{start}>{content}</{shown}>"
        return pick.mostly(whole, whole + whole, f"<!--{name}-->{whole}", f"<x>{whole}</x>", f"{whole}text", f"<{name}/>{whole}")

    def document(self, root: str, spaces: Mapping[str, str], content: str) -> bytes:
        pick = self.pick
        head = pick.mostly(
            '<?xml version="1.0" encoding="UTF-8"?>\n',
            "",
            "<?xml version='1.0' encoding='utf-8' standalone='yes'?>",
            '<?xml version="1.1" encoding="UTF-8"?>',
            '<?xml version="1.0" encoding="ISO-8859-1"?>',
            '<?xml version="1.0" encoding="US-ASCII"?>',
            '\ufeff<?xml version="1.0" encoding="UTF-8"?>',
            '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY evil "evil">]>',
            '<?xml version="1.0"?><!-- a --><?b c?>',
            " \n",
        )
        spaces = pick.mostly(spaces, {"xmlns": spaces["xmlns"]}, {**spaces, "xmlns:x": RPM}, {"xmlns:rpm": RPM}, {})
        text = f"{head}<{root}{self.attributes(spaces)}>{content}</{root}>"
        text += pick.mostly("", "\n", "<!-- end -->", "<x/>", "evil", "\0")
        return text.encode(pick.mostly("utf-8", "utf-16", "latin-1"), errors="replace")


def nevra(pick: Pick, built: Built) -> dict[str, str]:
    """The attributes of a version."""
    epoch = pick.mostly(str(built.epoch), "", f"0{built.epoch}")
    version = pick.mostly(built.rpm.version, "9", f"{built.epoch}:{built.rpm.version}")
    return {"epoch": epoch, "ver": version, "rel": pick.mostly(built.rpm.release, "9", "")}


def package(pick: Pick, built: Built, digest: str) -> str:
    """What primary.xml says of a package."""
    write, rpm = Writer(pick), built.rpm
    href = pick.mostly(built.path, f"./{built.path}", f"x/../{built.path}", f"/{built.path}", built.path.replace("P", "%50"), f"file:{built.path}")
    size = pick.mostly(str(len(built.raw)), f"0{len(built.raw)}", "1", f" {len(built.raw)}")
    parts = [
        write.element("name", content=write.text(pick.mostly(rpm.name, "evil"))),
        write.element("arch", content=write.text(pick.mostly(rpm.architecture, "noarch", "i686", "src", "amd64"))),
        write.element("version", nevra(pick, built)),
        write.element("checksum", {"type": pick.mostly("sha256", "SHA256", "sha"), "pkgid": "YES"}, write.text(digest)),
        write.element("summary", content=write.text("a summary")),
        write.element("description", content=write.text("a <description>")),
        write.element("packager", content=write.text(rpm.packager)),
        write.element("url", content=write.text("https://example.org/")),
        write.element("time", {"file": "1", "build": "1"}),
        write.element("size", {"package": size, "installed": "10", "archive": "10"}),
        write.element("location", {"href": href}),
        write.element("format", content=form(pick, write, built)),
    ]
    if pick.rarely():
        parts = pick.draw(st.permutations(parts))
    if pick.rarely():
        del parts[pick.draw(st.integers(0, len(parts) - 1))]
    between = pick.mostly("\n  ", "", "text", "<!-- evil -->")
    return write.element("package", {"type": pick.mostly("rpm", "deb")}, between.join(parts))


def form(pick: Pick, write: Writer, built: Built) -> str:
    parts = [
        write.element(f"rpm:{name}", content=write.text(value))
        for name, value in (("license", "x"), ("vendor", built.rpm.vendor), ("sourcerpm", built.rpm.name + "-1-ckp.src.rpm"))
    ]
    parts.append(write.element("rpm:header-range", {"start": "776", "end": "1561"}))
    for kind, relations in built.relations.items():
        entries = [entry(pick, write, relation) for relation in relations if not left_out(built, kind, relation)]
        if pick.rarely():
            entries += entries[:1]
        if pick.rarely():
            entries.append(write.element("rpm:entry", {"name": "evil"}))
        if pick.rarely():
            entries = entries[1:]
        parts.append(write.element(f"rpm:{kind}", content="".join(entries)))
    files = paths(built.rpm)
    for path in pick.draw(st.lists(st.sampled_from(sorted(files)), max_size=2, unique=True)):
        parts.append(listed_file(pick, write, path, files[path]))
    return "".join(pick.draw(st.permutations(parts)) if pick.rarely() else parts)


def left_out(built: Built, kind: str, relation: Dependency) -> bool:
    """What createrepo_c leaves out of the requirements."""
    return kind == "requires" and (relation[0].startswith("rpmlib(") or relation in built.relations.get("provides", ()))


def entry(pick: Pick, write: Writer, relation: Dependency) -> str:
    name, flags, version = relation
    values = {"name": name}
    if COMPARISONS[flags]:
        epoch, colon, rest = version.partition(":")
        plain, _, release = (rest if colon else version).partition("-")
        values["flags"] = pick.mostly(COMPARISONS[flags], COMPARISONS[flags].lower(), "LT")
        values["epoch"] = pick.mostly(epoch if colon else "0", "", "00")
        values["ver"] = pick.mostly(plain, "9", f"0:{plain}")
        if release:
            values["rel"] = release
    if pick.rarely():
        values["pre"] = pick.draw(st.sampled_from(["1", "0", ""]))
    return write.element("rpm:entry", values, pick.mostly("", '<rpm:entry name="evil"/>', "text"))


def paths(rpm: Rpm) -> dict[str, str]:
    """The types of an rpm's files, as createrepo_c writes them."""
    return {folder + name: "dir" if mode >> 12 == 4 else "" for folder, name, mode, _ in rpm.files}


def listed_file(pick: Pick, write: Writer, path: str, kind: str) -> str:
    shown = pick.mostly(path, f"{path}/", f"/{path}", path.replace("usr/", "usr//"), path.replace("usr/", "usr/./"), "/etc/evil")
    kind = pick.mostly(kind, "ghost", "dir", "evil", "")
    return write.element("file", {"type": kind} if kind else {}, write.text(shown))


# -- the repository


@dataclass(frozen=True)
class Repository:
    """A repository: its metadata by their paths, repomd.xml among them."""

    files: Mapping[str, bytes]
    debs: Sequence[str]
    """The paths of the packages that it names."""

    def write(self, root: Path, packages: Sequence[Built], sign: Sign) -> None:
        """Lay it out below `root`, with its packages, and sign it."""
        repomd = self.files["repodata/repomd.xml"]
        pooled = {built.path: built.raw for built in packages if built.path in self.debs}
        for path, content in {**self.files, **pooled, "repodata/repomd.xml.asc": sign(repomd)}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)


PACKS: Mapping[str, Sequence[Callable[[bytes], bytes]]] = {**PACKERS, ".bz2": [bz2.compress], ".lzma": [lzma.compress]}


@st.composite
def repositories(draw: st.DrawFn, packages: Sequence[Built], chosen: st.SearchStrategy[Collection[int]]) -> Repository:
    """A repository of some packages, with these faults."""
    return repository(Pick(draw, draw(chosen)), packages)


def repository(pick: Pick, packages: Sequence[Built]) -> Repository:
    """One such."""
    write = Writer(pick)
    named = pick.draw(st.lists(st.sampled_from(packages), max_size=3, unique_by=pick.mostly(lambda built: built.path, id)))
    digests = {built.path: hashlib.sha256(built.raw).hexdigest() for built in named}
    count = pick.mostly(str(len(named)), "0", "", "9")
    primary = "".join(package(pick, built, digests[built.path]) for built in named)
    lists = "".join(filelist(pick, write, built, digests[built.path]) for built in (pick.draw(st.permutations(named)) if pick.rarely() else named))
    texts_of = {
        "primary": write.document("metadata", {"xmlns": COMMON, "xmlns:rpm": RPM, "packages": count}, primary),
        "filelists": write.document("filelists", {"xmlns": FILELISTS, "packages": str(len(named))}, lists),
        "other": b"<otherdata/>",
    }
    files: dict[str, bytes] = {}
    entries = []
    for kind, plain in texts_of.items():
        packing = pick.draw(st.sampled_from(["", ".gz", ".gz", ".xz", ".zst"])) if not pick.rarely() else pick.draw(st.sampled_from([".bz2", ".lzma", ".zck"]))
        usual, *others = PACKS.get(packing, [gzip.compress])
        content = pick.mostly(usual, *others)(plain)
        path = f"repodata/{hashlib.sha256(content).hexdigest()}-{kind}.xml{packing}"
        files[path] = content
        entries.append(data_entry(pick, write, kind, path, content, plain))
    if pick.rarely():
        entries = pick.draw(st.permutations(entries))
    if pick.rarely():
        entries.append(pick.draw(st.sampled_from(entries)))
    if pick.rarely():
        entries.append(
            write.element("data", {"type": pick.draw(st.sampled_from(["group", "modules", "updateinfo", "primary_db", "primary_zck", "evil"]))}, "x")
        )
    more = write.element("revision", content="1") + pick.mostly("", "<tags><content>x</content></tags>", f"<tags>{entries[0]}</tags>", "<x/>", "text")
    files["repodata/repomd.xml"] = write.document("repomd", {"xmlns": REPO, "xmlns:rpm": RPM}, pick.mostly(more + "".join(entries), "".join(entries) + more))
    return Repository(files, [built.path for built in named])


def data_entry(pick: Pick, write: Writer, kind: str, path: str, content: bytes, plain: bytes) -> str:
    """An entry of repomd.xml."""
    digest = {"type": pick.mostly("sha256", "SHA256", "sha512", "")}
    href = pick.mostly(path, f"./{path}", path.replace("repodata/", "repodata//"), path.replace("re", "%72e", 1), f"/{path}", f"x/../{path}")
    parts = [
        write.element("checksum", digest, write.text(hashlib.sha256(content).hexdigest())),
        write.element("open-checksum", digest, write.text(pick.mostly(hashlib.sha256(plain).hexdigest(), "0" * 64))),
        write.element("location", {"href": href}),
        write.element("timestamp", content=write.text(pick.mostly("1", "x", "1.5", "-1", "9" * 30))),
        write.element("size", content=write.text(pick.mostly(str(len(content)), f"0{len(content)}", "1", "x"))),
        write.element("open-size", content=write.text(pick.mostly(str(len(plain)), "1", "-1"))),
    ]
    if pick.rarely():
        parts = pick.draw(st.permutations(parts))
    if pick.rarely():
        del parts[pick.draw(st.integers(0, len(parts) - 1))]
    return write.element("data", {"type": pick.mostly(kind, kind.upper(), f"{kind} ")}, "".join(parts))


def filelist(pick: Pick, write: Writer, built: Built, digest: str) -> str:
    """What filelists.xml says of a package."""
    files = paths(built.rpm)
    parts = [write.element("version", nevra(pick, built)), *(listed_file(pick, write, path, kind) for path, kind in files.items())]
    return write.element("package", {"pkgid": digest, "name": built.rpm.name, "arch": built.rpm.architecture}, "".join(parts))
