"""The images of a release: every core component, the management layer's controllers, and CKP's own platform image.

All are made from what this project built: static programs on an empty file system, or on a minimal Debian where a program
needs other programs. Nothing is pulled from a registry.
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckp.catalog.models import Release
from ckp.clients.oci.registry import Descriptor, image_manifest
from ckp.distribution.builder.component import Built
from ckp.distribution.images import pause
from ckp.distribution.images.layers import CREATED, Entry, Layer, debian_layer, file_layer, program_layer, store
from ckp.distribution.packages.agent import tag_of_version
from ckp.distribution.packages.pack import Package
from ckp.kits import paths
from ckp.kits.files import building_directory, exclusive, sha256_bytes, sha256_file
from ckp.kits.processes import run

NONROOT = "65532:65532"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON_PACKAGES = ("ca-certificates", "python3-minimal", "libpython3-stdlib", "openssl", "tzdata")
NETWORK_PACKAGES = ("bash", "ca-certificates", "conntrack", "ethtool", "iproute2", "ipset", "iptables", "kmod", "libelf1", "nftables", "util-linux", "mount")
CLANG = "usr/lib/llvm-19/lib/clang/19/include"


@dataclass(frozen=True)
class Image:
    """One image: its repository below the registry's prefix, its tag, and how it is made."""

    repository: str
    tag: str
    layers: tuple[Layer, ...]
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    env: tuple[str, ...] = (PATH,)
    workdir: str = "/"

    def manifest(self) -> Descriptor:
        """Store config and manifest, and return the manifest's descriptor."""
        config: dict[str, object] = {"Env": list(self.env), "WorkingDir": self.workdir}
        if self.entrypoint:
            config["Entrypoint"] = list(self.entrypoint)
        if self.user:
            config["User"] = self.user
        return image_manifest(store(), list(self.layers), config, CREATED)


@dataclass
class ImageBuilder:
    """Makes the images of one release from its built components."""

    release: Release
    built: Mapping[str, Built]
    say: Callable[[str], None]
    agents: Sequence[Package] = ()
    _images: list[Image] = field(default_factory=list)

    def all(self) -> list[Image]:
        """Every image of the release, made or found."""
        self._core()
        self._management()
        self._cilium()
        self._platform()
        if self.agents:
            self._agent()
        return self._images

    def _add(self, repository: str, tag: str, layers: Sequence[Layer], entrypoint: Sequence[str] = (), user: str = "", **more: object) -> None:
        image = Image(repository, tag, tuple(layers), tuple(entrypoint), user, **more)  # type: ignore[arg-type]
        self._images.append(image)
        self.say(f"image {repository}:{tag}, {sum(layer[0].size for layer in layers) >> 20} MiB")

    def _version(self, role: str) -> str:
        return self.built[role].chosen.source.version

    def _core(self) -> None:
        kubernetes, stamp = self.built["kubernetes"], self.release.stamp
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
            self._add(name, stamp, [_program(kubernetes.binary(name), f"/usr/local/bin/{name}")])
        network = debian_layer(NETWORK_PACKAGES)
        self._add("kube-proxy", stamp, [network, _program(kubernetes.binary("kube-proxy"), "/usr/local/bin/kube-proxy")])
        # kubeadm and kubectl run as Jobs against hosted control planes.
        self._add("kubeadm", stamp, [_static(kubernetes, {"kubeadm": "/usr/local/bin/kubeadm", "kubectl": "/usr/local/bin/kubectl"})], user=NONROOT)
        etcd = {"etcd": "/usr/local/bin/etcd", "etcdctl": "/usr/local/bin/etcdctl", "etcdutl": "/usr/local/bin/etcdutl"}
        self._add("etcd", self.release.image_tags["etcd"], [_static(self.built["etcd"], etcd)])
        self._add("coredns", self._version("coredns"), [_program(self.built["coredns"].binary("coredns"), "/coredns")], ["/coredns"])
        tag = self.release.image_tags["pause"]
        self._add("pause", tag, [_program(pause.build(kubernetes.file(pause.SOURCE), tag), "/pause")], ["/pause"], "65535:65535")
        konnectivity = self.built["konnectivity"]
        for name, program in (("konnectivity-server", "proxy-server"), ("konnectivity-agent", "proxy-agent")):
            self._add(name, self._version("konnectivity"), [_program(konnectivity.binary(program), f"/{program}")], [f"/{program}"], NONROOT)

    def _management(self) -> None:
        capi, version = self.built["cluster-api"], self._version("cluster-api")
        self._add("cluster-api-controller", version, [_program(capi.binary("cluster-api-manager"), "/manager")], ["/manager"], NONROOT)
        self._add("kubeadm-bootstrap-controller", version, [_program(capi.binary("kubeadm-bootstrap-manager"), "/manager")], ["/manager"], NONROOT)
        certificates, version = self.built["cert-manager"], self._version("cert-manager")
        for name in ("controller", "webhook", "cainjector"):
            self._add(f"cert-manager-{name}", version, [_program(certificates.binary(name), f"/{name}")], [f"/{name}"], NONROOT)
        storage = self.built["openebs"]
        program = storage.chosen.source.binaries[0].name
        self._add(program, storage.chosen.source.version, [_program(storage.binary(program), f"/usr/bin/{program}")], [program], env=(PATH,))

    def _cilium(self) -> None:
        cilium, version = self.built["cilium"], self._version("cilium")
        network = debian_layer(NETWORK_PACKAGES)
        # Cilium compiles its BPF programs on the host; of a compiler's 400 MB of packages that takes clang, its libraries and a few headers.
        headers = [f"{CLANG}/{pattern}" for pattern in ("std*.h", "__std*.h", "limits.h", "float.h", "iso646.h", "builtins.h")]
        compiler = program_layer("clang-19", "/usr/lib/llvm-19/bin/clang", "/usr/bin/clang", extra=headers)
        programs = {
            "cilium-agent": "/usr/bin/cilium-agent",
            "cilium-dbg": "/usr/bin/cilium-dbg",
            "cilium-cni": "/opt/cni/bin/cilium-cni",
            "cilium-mount": "/usr/bin/cilium-mount",
            "cilium-sysctlfix": "/usr/bin/cilium-sysctlfix",
            "cilium-health": "/usr/bin/cilium-health",
            "cilium-health-responder": "/usr/bin/cilium-health-responder",
            "cilium-bugtool": "/usr/bin/cilium-bugtool",
        }
        scripts = [Entry(f"/{name}", cilium.file(name), 0o755) for name in ("init-container.sh", "install-plugin.sh", "cni-uninstall.sh")]
        files = [
            *(Entry(target, cilium.binary(name), 0o755) for name, target in programs.items()),
            *scripts,
            Entry("/usr/bin/cilium", link="cilium-dbg"),
            Entry("/cni/loopback", self.built["cni-plugins"].binary("loopback"), 0o755),
            Entry("/var/lib/cilium/bpf", cilium.file("bpf")),
        ]
        self._add("cilium", version, [network, compiler, file_layer(files)], ["/usr/bin/cilium-dbg"], workdir="/var/lib/cilium")
        operator = _program(cilium.binary("cilium-operator-generic"), "/usr/bin/cilium-operator-generic")
        self._add("cilium-operator-generic", version, [network, operator], ["/usr/bin/cilium-operator-generic"])

    def _platform(self) -> None:
        """CKP's controllers, hub and Compass: one image, three programs, each with rights of its own."""
        base = debian_layer(PYTHON_PACKAGES)
        site = python_site("platform")
        code = file_layer([Entry("/opt/ckp/src/ckp", platform_code()), Entry("/opt/ckp/catalog", paths.REPO / "catalog" / "releases")])
        env = (PATH, "PYTHONPATH=/opt/ckp/src:/opt/ckp/site", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1", "HOME=/tmp")
        self._add("ckp-platform", platform_tag(), [base, file_layer([Entry("/opt/ckp/site", site)]), code], ["python3", "-m"], NONROOT, env=env)
        charts = [Entry("/charts/cilium", self.built["cilium"].file("chart"))]
        helm = [Entry("/usr/local/bin/helm", self.built["helm"].binary("helm"), 0o755), *charts]
        self._add("ckp-addons", platform_tag(), [file_layer(helm)], ["/usr/local/bin/helm"], NONROOT, env=(PATH, "HOME=/tmp"))

    def _agent(self) -> None:
        """The agent's packages for hosts that upgrade it: verified there like any other, so the image is only their way."""
        version = self.agents[0].version
        packages = [Entry(f"/{package.name}.{package.format}", package.path) for package in self.agents]
        self._add("ckp-agent", tag_of_version(version), [file_layer(packages)])


def _program(binary: Path, target: str) -> Layer:
    return file_layer([Entry(target, binary, 0o755), Entry("/tmp/", mode=0o1777)])


def _static(built: Built, programs: Mapping[str, str]) -> Layer:
    return file_layer([*(Entry(target, built.binary(name), 0o755) for name, target in programs.items()), Entry("/tmp/", mode=0o1777)])


def platform_code() -> Path:
    """The project's own Python for the platform image: a copy without caches, kept by its content."""
    rooms = ("api", "catalog", "clients", "compass", "controllers", "hub", "kits", "rules", "runtime")
    files = [path for room in rooms for path in sorted((paths.REPO / "src/ckp" / room).rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    files.append(paths.REPO / "src/ckp/__init__.py")
    key = sha256_bytes("\n".join(f"{path.relative_to(paths.REPO)} {sha256_file(path)}" for path in files).encode())[:20]
    final = paths.cache() / "platform-code" / key
    with exclusive(final.with_name(final.name + ".lock"), what="copying the platform's code", timeout=120):
        if not final.exists():
            with building_directory(final) as scratch:
                for path in files:
                    target = scratch / path.relative_to(paths.REPO / "src/ckp")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)
    return final


def platform_tag() -> str:
    """The tag of CKP's own images: its version and what its code is, so that changed code rolls out and the same does not."""
    from ckp import __version__

    return f"v{__version__}-{platform_code().name[:8]}"


def python_site(name: str) -> Path:
    """The packages of `requirements/<name>.txt` for Debian 12's Python 3.11, hash-checked by pip, compiled without timestamps."""
    requirements = paths.REPO / "requirements" / f"{name}.txt"
    final = paths.cache() / "python" / f"{name}-{sha256_file(requirements)[:20]}"
    with exclusive(final.with_name(final.name + ".lock"), what="fetching Python packages", timeout=900):
        if not final.exists():
            with building_directory(final) as scratch:
                platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(17, 37)]
                argv = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--require-hashes", "--no-deps", "--only-binary=:all:"]
                target = ["--python-version=3.11", "--implementation=cp", "--platform=manylinux2014_x86_64", *platforms, f"--target={scratch}"]
                run([*argv, *target, "-r", requirements], timeout=600, what="fetching Python packages")
                shutil.rmtree(scratch / "bin", ignore_errors=True)
                compileall.compile_dir(scratch, quiet=2, stripdir=str(scratch), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    return final
