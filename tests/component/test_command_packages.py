"""`ckp` as people install it: its Python environment alone, and its packages, on a Debian 12 that dpkg installs the deb into.

The rpm's scripts are run by rpm in that same root, which is no RHEL. Its files are those of the deb.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ckp import __version__
from ckp.catalog.load import Catalog
from ckp.cli.distribution.package import dist_package
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.builder.component import Built
from ckp.distribution.carry.archive import Member, write_archive
from ckp.distribution.packages.command import GLIBC, NAME, PYTHONS, build_wheel, command_version, environment
from ckp.distribution.packages.pack import Recipe, pack_unsigned
from ckp.distribution.packages.unsigned import unsigned_sha256
from ckp.distribution.repositories.publish import Repositories
from ckp.kits import paths
from ckp.kits.processes import run
from ckp.lab import base
from ckp.site.check.rules import IGNORABLE
from ckp.verify.packagefile import maintained_by_coredge
from ckp.verify.packages import verify_package
from tests.component.test_agent_pythons import interpreter
from tests.support import release_packages
from tests.support.debian_root import Debian
from tests.support.release_packages import FORMATS, extras, unsigned
from tests.support.signing_keys import signing_key

SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
"""Of glibc and libgcc, on which the packages depend."""
ROOMS = ("api", "catalog", "cli", "clients", "conformance", "distribution", "hostkit", "kits", "lab", "rules", "site", "standalone", "verify")
PLATFORM = {"ckp.clients.kube"}
"""What the pods of the management layer use, and no command does."""
LOAD_ALL = """
import importlib, json, pkgutil, sys
rooms, left_out = json.loads(sys.argv[1])
for room in rooms:
    top = importlib.import_module("ckp." + room)
    for item in pkgutil.walk_packages(top.__path__, top.__name__ + "."):
        if item.name not in left_out and not item.name.endswith("__main__"):
            importlib.import_module(item.name)
print(json.dumps({name: getattr(module, "__file__", None) for name, module in sys.modules.items()}))
"""


@pytest.fixture(scope="module")
def place() -> Path:
    """What lies in /usr/lib/ckp."""
    return environment(build_wheel())


@dataclass(frozen=True)
class Command:
    """A Python with nothing but the environment, as the package runs it, in a folder and with settings of its own."""

    python: str
    place: Path
    folder: Path

    def __call__(self, *arguments: str | Path, code: int = 0) -> str:
        script = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ckp.cli.main import main; main()"
        return self.run(["-c", script, self.place, *arguments], code)

    def run(self, argv: Sequence[str | Path], code: int = 0) -> str:
        """Python with arguments: its standard output, or of a failure both outputs."""
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.folder)}
        env |= {f"CKP_{name}": str(self.folder / name.lower()) for name in ("CACHE", "KEYS", "STATE", "CONFIG")}
        done = subprocess.run([self.python, "-ISB", *argv], cwd=self.folder, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == code and "Traceback" not in done.stderr, f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stdout + done.stderr


@pytest.fixture
def ckp(place: Path, tmp_path: Path) -> Command:
    return Command(interpreter(PYTHONS[0]), place, tmp_path)


@pytest.fixture(params=PYTHONS)
def each(request: pytest.FixtureRequest, place: Path, tmp_path: Path) -> Command:
    """On each Python that this machine has."""
    return Command(interpreter(request.param), place, tmp_path)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("ours") / "keys")


def archive(folder: Path, key: SigningKey, registry: str) -> Path:
    """As much of a release's file as is read before a site is changed."""
    (folder / "content").write_text("content")
    release = Catalog().release("v1.35.1").model_dump(mode="json")
    about = {"kind": "ckp-release", "ckp": __version__, "registry": registry, "stand_ins": [], "release": release}
    write_archive(folder / "release.ckp", about, [Member("packages/content", folder / "content")], key, lambda line: None)
    return folder / "release.ckp"


# -- the environment -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", PYTHONS)
def test_the_environment_has_all_that_its_packages_need(place: Path, python: str) -> None:
    """Their own words, of every release of Python that the environment is for; none is there for nothing."""
    found: dict[str, Distribution] = {canonicalize_name(item.metadata["Name"]): item for item in distributions(path=[str(place)])}
    needed: set[str] = set()
    todo = [NAME]
    while todo:
        for text in found[todo.pop()].requires or ():
            item = Requirement(text)
            if item.marker and not item.marker.evaluate({"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "extra": ""}):
                continue
            name = canonicalize_name(item.name)
            assert name in found and item.specifier.contains(found[name].version), f"{text} is needed on Python {python}"
            todo += [name] if name not in needed else []
            needed.add(name)
    assert found.keys() == needed | {NAME}


def test_compiled_modules_are_there_for_each_python_and_run_on_the_oldest_system(place: Path) -> None:
    modules = sorted(place.rglob("*.so*"))
    by_python: dict[str, set[str]] = {python: set() for python in PYTHONS}
    for module in modules:
        assert max(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", module.read_bytes())) <= GLIBC, module
        listed = run(["readelf", "--dynamic", "--wide", module], timeout=60).stdout
        assert set(re.findall(r"\(NEEDED\).*\[(.*)\]", listed)) <= SYSTEM_LIBRARIES, module
        assert "Advanced Micro Devices X86-64" in run(["readelf", "--file-header", module], timeout=60).stdout
        abi = re.search(r"\.cpython-(\d)(\d+)-", module.name)
        if abi:
            by_python[f"{abi[1]}.{abi[2]}"].add(module.name.partition(".")[0])
        else:
            assert module.name.endswith(".abi3.so"), module
    assert by_python.keys() == set(PYTHONS) and len({frozenset(names) for names in by_python.values()}) == 1 and all(by_python.values())


def test_it_has_no_bytecode_and_no_words_of_its_own_installation(place: Path) -> None:
    names = {path.name for path in place.rglob("*")}
    assert not names & {"__pycache__", "RECORD", "INSTALLER", "WHEEL", "direct_url.json", "bin"} and "METADATA" in names


def test_every_module_that_a_command_may_need_loads_from_it_alone(each: Command) -> None:
    script = f"import sys; sys.path.insert(0, {str(each.place)!r})\n{LOAD_ALL}"
    files: dict[str, str | None] = json.loads(each.run(["-c", script, json.dumps([ROOMS, sorted(PLATFORM)])]))
    assert {"ckp.cli.site_changes", "ckp.site.apply", "ckp.distribution.carry.airgap", "pydantic_core", "cryptography", "yaml"} <= files.keys()
    assert {"pysequoia", "lightkube", "setuptools", "pip"} & files.keys() == set()
    foreign = [name for name, file in files.items() if file and ("site-packages" in file or "dist-packages" in file)]
    assert foreign == []


def test_commands_that_need_no_host_and_no_release(ckp: Command) -> None:
    assert [line.split()[0] for line in ckp("release", "list").splitlines()[1:]] == Catalog().names()
    assert ckp("site", "apply", "--help").startswith("Usage: ckp site apply [OPTIONS]")
    assert "usage: " in ckp("standalone", "install", "--help").lower()


def test_a_site_is_described_and_checked(each: Command) -> None:
    options = ["--host", "node-1=192.0.2.11", "--network", "192.0.2.0/24", "--pool", "192.0.2.200-192.0.2.249"]
    assert each("site", "init", "--name", "berlin", *options) == "wrote site.yaml\n"
    described = each.folder / "site.yaml"
    described.write_text(described.read_text().replace("        user: root\n", "        user: root\n        host: 127.0.0.1\n        port: 1\n"))
    said = each("site", "check", code=1)
    assert re.search(r"^node-1 +reachable +error .* refuses the connection: ", said, re.M), said


@pytest.mark.root("is its own site's host")
def test_a_site_takes_its_release_from_a_file(ckp: Command, key: SigningKey) -> None:
    """Until the file turns out to be made for another site: nothing of this machine is changed. Nor does it matter what a check says of it."""
    file = archive(ckp.folder, key, "elsewhere.test:5000")
    ckp("site", "init", "--name", "here", "--host", "here=127.0.0.1", "--network", "127.0.0.0/8", "--pool", "127.0.0.200-127.0.0.220")
    described = ckp.folder / "site.yaml"
    described.write_text(described.read_text().replace("      ssh:\n        user: root\n", "      local: true\n"))
    anyway = [word for check in IGNORABLE for word in ("--ignore-finding", check)]
    said = ckp("site", "apply", "--from", file, "--keyring", key.keyring, *anyway, code=2)
    assert "1 files of release.ckp are as they were signed" in said
    assert f"the bundles in {file} name the registry elsewhere.test:5000, and the site's is registry.here.internal:5000" in said


def test_a_file_that_a_stranger_signed_is_refused(ckp: Command, key: SigningKey, tmp_path: Path) -> None:
    stranger = signing_key(tmp_path / "stranger", "stranger")
    file = archive(ckp.folder, stranger, "elsewhere.test:5000")
    assert "release.ckp" in ckp("dist", "import", file, "--keyring", key.keyring, code=3)
    assert "v1.35.1-ckp in " in ckp("dist", "import", file, "--keyring", stranger.keyring)


@pytest.mark.parametrize("command", [["dist", "build"], ["dist", "package", "--output", "x"], ["up"]], ids=" ".join)
def test_what_makes_releases_names_the_extra(ckp: Command, command: list[str]) -> None:
    if command == ["up"] and os.geteuid() != 0:
        pytest.skip("only root comes so far")
    assert "pip install 'ckp[build]'" in ckp(*command, code=1)


# -- the packages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def built() -> dict[str, Built]:
    return release_packages.built_release()


@pytest.fixture(scope="module")
def published(built: dict[str, Built], place: Path, key: SigningKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ckp dist package` makes: `output` and `repositories`. Its packages are not kept in the cache, as the tests' keys change."""
    root = tmp_path_factory.mktemp("published")
    (root / "cache").mkdir()
    for name in ("builds", "command", "python", "wheel"):
        (root / "cache" / name).symlink_to(paths.cache().absolute() / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CKP_CACHE", str(root / "cache"))
        patch.setenv("CKP_KEYS", str(key.folder))
        done = CliRunner().invoke(dist_package, ["--output", str(root / "output"), "--repositories", str(root / "repositories")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return root


def made(published: Path, format: str) -> Path:
    (path,) = (published / "output").glob(f"*.{format}")
    return path


@pytest.mark.release
def test_all_that_is_made_verifies_and_ckp_itself_verifies_it(published: Path, key: SigningKey, ckp: Command) -> None:
    version = command_version(ckp.place)
    names = {f"ckp_{version}_amd64.deb", f"ckp-{version}.x86_64.rpm", f"ckp-{__version__}-py3-none-any.whl"}
    assert {path.name for path in (published / "output").iterdir()} == names
    for format in FORMATS:
        info = verify_package(str(made(published, format)), str(key.keyring), name=NAME, version=version, architecture="amd64")
        assert maintained_by_coredge(info.maintainer)
    places = [made(published, "deb"), made(published, "rpm"), published / "repositories"]
    assert re.findall(r"^(\S+): good$", ckp("dist", "verify", *places, "--keyring", key.keyring), re.M) == [str(place) for place in places]
    assert {(item.component, item.format) for item in Repositories(published / "repositories", key).contents()} == {("ckp", "deb"), ("ckp", "rpm")}


@pytest.mark.release
def test_the_same_content_gives_the_same_bytes(published: Path, built: dict[str, Built], place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(place, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    extra = extras(NAME) | {"environment": copy}
    pack_unsigned(Recipe.read(NAME), command_version(place), {}, built["nfpm"].binary("nfpm"), tmp_path / "again.deb", extra=extra, format="deb")
    assert unsigned_sha256(tmp_path / "again.deb") == unsigned_sha256(made(published, "deb"))


@pytest.mark.release
def test_the_packages_name_every_module_and_its_licence(published: Path, place: Path, tmp_path: Path) -> None:
    run(["dpkg-deb", "-x", made(published, "deb"), tmp_path], timeout=60)
    listed = (tmp_path / "usr/share/doc/ckp/THIRD_PARTY").read_text()
    modules = {re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^Module: pypi:(\S+)$", listed, re.M)}
    assert modules == {canonicalize_name(item.metadata["Name"]) for item in distributions(path=[str(place)])}
    assert not re.search(r"^Licence-Files:\n\n", listed, re.M), "each has a licence"
    for library in ("OpenSSL", "LibYAML", "libffi"):
        assert f"Library: {library}\n" in listed


@pytest.fixture
def debian(tmp_path: Path) -> Debian:
    host = Debian(str(base.ensure(print)), tmp_path / "debian")
    host.folder.mkdir()
    return host


HOSTILE = "raise SystemExit('somebody else answers')\n"


def files_of(debian: Debian) -> set[str]:
    return set(debian.sh("find / -xdev -path /proc -prune -o -path /packages -prune -o -print").stdout.splitlines())


@pytest.mark.release
@pytest.mark.root("changes its root")
def test_the_deb_is_installed_runs_by_itself_and_goes_without_a_trace(debian: Debian, built: dict[str, Built], published: Path) -> None:
    before = files_of(debian)
    debian.install(made(published, "deb"), unsigned("kubectl", built, "deb").path)
    assert debian.faults(NAME) == ""
    assert debian.sh("cd / && ckp --version && kubectl ckp --version").stdout == f"ckp, version {__version__}\n" * 2
    for name in ("click", "ckp", "yaml", "sitecustomize"):
        for folder in ("/hostile", "/usr/lib/python3/dist-packages", "/root/.local/lib/python3.11/site-packages", "/usr/local/lib/python3.11/dist-packages"):
            debian.write(f"{folder}/{name}.py", HOSTILE)
    said = debian.sh("cd /hostile && PYTHONPATH=/hostile PYTHONSTARTUP=/hostile/ckp.py PYTHONHOME=/hostile HOME=/root ckp release list").stdout
    assert said.splitlines()[0].startswith("NAME ") and "somebody" not in said
    assert "complete" in debian.sh("bash -n /usr/share/bash-completion/completions/ckp && cat /usr/share/bash-completion/completions/ckp").stdout
    bytecode = debian.sh("find /usr/lib/ckp -name '*.pyc'").stdout.splitlines()
    assert any(line.endswith("/ckp/cli/__pycache__/main.cpython-311.pyc") for line in bytecode)
    debian.sh("ckp site init --name berlin --host n=192.0.2.11 --network 192.0.2.0/24 --pool 192.0.2.200-192.0.2.249 /tmp/site.yaml && rm /tmp/site.yaml")
    assert debian.sh("find /usr/lib/ckp -name '*.pyc'").stdout.splitlines() == bytecode, "root's use leaves nothing that no package knows"
    debian.sh(f"rm -rf /hostile /root/.local; dpkg --purge {NAME} kubectl")
    kept = ("/var/lib/dpkg", "/var/log", "/var/cache", "/usr/lib/python3/dist-packages/", "/usr/local/lib/python3.11", "/root/", "/tmp/")
    assert [name for name in sorted(files_of(debian) - before) if not name.startswith(kept)] == []


@pytest.mark.release
@pytest.mark.root("changes its root")
def test_the_rpm_has_the_debs_files_and_leaves_none_of_an_earlier_version(debian: Debian, built: dict[str, Built], published: Path, tmp_path: Path) -> None:
    """rpm's order at an upgrade: the new files, then the old ones go, then bytecode is made."""
    older = tmp_path / "older"
    (older / "ckp" / "gone").mkdir(parents=True)
    (older / "ckp" / "gone" / "module.py").write_text("x = 1\n")
    recipe, nfpm = Recipe.read(NAME), built["nfpm"].binary("nfpm")
    pack_unsigned(recipe, "0.0.1-ckp", {}, nfpm, tmp_path / "older.rpm", extra=extras(NAME) | {"environment": older}, format="rpm")
    rpm = made(published, "rpm")

    def manage(*arguments: str | Path) -> None:
        """This machine's rpm on that root: what RHEL calls its dependencies, Debian has under other names."""
        debian.outside(["rpm", "--nosignature", "--nodeps", "--root", debian.root, *arguments])

    manage("-i", tmp_path / "older.rpm")
    assert debian.exists("/usr/lib/ckp/ckp/gone/__pycache__/module.cpython-311.pyc")
    manage("-U", rpm)
    assert not debian.exists("/usr/lib/ckp/ckp/gone") and debian.exists("/usr/lib/ckp/ckp/cli/__pycache__/main.cpython-311.pyc")
    assert debian.sh("cd / && ckp --version").stdout == f"ckp, version {__version__}\n"
    manage("-e", NAME)
    assert not debian.exists("/usr/lib/ckp") and not debian.exists("/usr/bin/ckp")
    assert payload(rpm) == payload(made(published, "deb"))


def payload(package: Path) -> dict[str, bytes]:
    """Files below /usr/bin and /usr/lib, with their content or target."""
    argv: list[str | Path] = ["dpkg-deb", "--fsys-tarfile", package] if package.suffix == ".deb" else ["rpm2archive", "-n", "-"]
    found = {}
    with package.open("rb") as stdin, subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        with tarfile.open(fileobj=child.stdout, mode="r|") as content:
            for member in content:
                name = member.name.lstrip("./")
                if name.startswith(("usr/bin", "usr/lib")) and not member.isdir():
                    stream = content.extractfile(member) if member.isreg() else None
                    found[name] = stream.read() if stream else member.linkname.encode()
    return found
