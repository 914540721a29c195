"""The images of a release: every core component, the management layer's controllers, and CKP's own platform image. And those of its conformance suite.

What is in an image is data (ckp.distribution.images.recipes). All are made from what this project built: static programs on an empty file system,
or on a minimal Debian where a program needs other programs. Nothing is pulled from a registry.
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckp.catalog.models import Release
from ckp.clients.oci.registry import Descriptor, image_manifest
from ckp.distribution.builder.component import Built
from ckp.distribution.builder.wheels import install_locked
from ckp.distribution.images import pause
from ckp.distribution.images.layers import CREATED, Entry, Layer, debian_layer, file_layer, program_layer, store
from ckp.distribution.images.recipes import AGENT, CKP, IMAGE_TAGS, RELEASE, SUITE, Content, ImageRecipe, LayerData, read_images
from ckp.distribution.packages.agent import tag_of_version
from ckp.distribution.packages.pack import Package
from ckp.distribution.packages.recipefile import applies, built_source
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.kits.files import building_directory, exclusive, sha256_bytes, sha256_file

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


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
    recipe: tuple[Path, ...] = ()
    """Files below `packaging/` that describe it."""
    cmd: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def manifest(self) -> Descriptor:
        """Store config and manifest, and return the manifest's descriptor."""
        config: dict[str, object] = {"Env": list(self.env), "WorkingDir": self.workdir}
        if self.entrypoint:
            config["Entrypoint"] = list(self.entrypoint)
        if self.cmd:
            config["Cmd"] = list(self.cmd)
        if self.user:
            config["User"] = self.user
        if self.labels:
            config["Labels"] = dict(self.labels)
        return image_manifest(store(), list(self.layers), config, CREATED)


@dataclass
class ImageBuilder:
    """Makes the images of one release from its built components, as their recipes say.

    Args:
        built: the components by their role.
        say: takes lines of progress.
        agents: the agent's packages; without them its image is not made.
        folder: the recipes; by default those of releases.
        suite: the images of the conformance suite, with their tags. Recipes with the version `suite` are made of these, and of no others.
        made: further sources that recipes call `extra/<name>`.
    """

    release: Release
    built: Mapping[str, Built]
    say: Callable[[str], None]
    agents: Sequence[Package] = ()
    folder: Path | None = None
    suite: Mapping[str, Sequence[str]] = field(default_factory=dict)
    made: Mapping[str, Callable[[], Sequence[Path]]] = field(default_factory=dict)

    def all(self) -> list[Image]:
        """All images of the release, made if they are not in the cache.

        Raises:
            InvalidInput: a recipe is wrong, or one is missing; nothing was made.
        """
        recipes = read_images(self.folder)
        if missing := set(self.suite) - {recipe.repository for recipe in recipes}:
            raise InvalidInput(f"there is no recipe in {self.folder} of {', '.join(sorted(missing))}", resolution="add its file there")
        return self.of(recipes)

    def of(self, recipes: Sequence[ImageRecipe]) -> list[Image]:
        """The images of these recipes, as `all`."""
        plans = [_Plan(self, recipe) for recipe in recipes if self._wanted(recipe)]
        for plan in plans:
            plan.check()
        return [self._said(image) for plan in plans for image in plan.make()]

    def _wanted(self, recipe: ImageRecipe) -> bool:
        if recipe.data.version == SUITE and self.suite and recipe.repository not in self.suite:
            return False
        return applies(recipe.data.when, self.built) and (recipe.data.version != AGENT or bool(self.agents))

    def _said(self, image: Image) -> Image:
        self.say(f"image {image.repository}:{image.tag}, {sum(layer[0].size for layer in image.layers) >> 20} MiB")
        return image

    @property
    def extras(self) -> dict[str, Callable[[], Sequence[Path]]]:
        """What recipes call `extra/<name>`: what is neither a component nor beside the recipe. Several files are put below the content's `dst`."""
        return {
            "pause": lambda: (pause.build(self.built["kubernetes"].file(pause.SOURCE), self.release.image_tags["pause"]),),
            "platform-code": lambda: (platform_code(),),
            "platform-python": lambda: (python_site("platform"),),
            "catalog-releases": lambda: (paths.data("catalog", "releases"),),
            "agent-packages": lambda: tuple(package.path for package in self.agents),
            **self.made,
        }


@dataclass(frozen=True)
class _Plan:
    """One recipe, applied to a release."""

    builder: ImageBuilder
    recipe: ImageRecipe

    def check(self) -> None:
        """InvalidInput if the recipe names what the release does not have."""
        self._tags()
        for number, layer in enumerate(self.recipe.data.layers):
            if layer.debian:
                self.recipe.debian_packages(layer.debian, f"{self.recipe.file}: layers.{number}.debian")
            for place, content in self._contents(number, layer):
                if content.type == "file":
                    self._source(content, place)

    def make(self) -> list[Image]:
        """The image under each of its tags, made if it is not in the cache."""
        data = self.recipe.data
        layers = tuple(made for number, layer in enumerate(data.layers) if (made := self._layer(number, layer)))
        image = Image(self.recipe.repository, "", layers, data.entrypoint, data.user, (PATH, *data.env), data.workdir, self._files(), data.cmd)
        return [replace(image, tag=tag, labels=self._labels(tag)) for tag in self._tags()]

    def _labels(self, tag: str) -> tuple[tuple[str, str], ...]:
        """Two tags of one image have equal layers here; the label gives them two digests, since tests wait for a rollout from one to the other."""
        return (("org.opencontainers.image.version", tag),) if self.recipe.data.version == SUITE else ()

    def _files(self) -> tuple[Path, ...]:
        own = self.recipe.own_file("")
        lists = {self.recipe.debian_file(layer.debian) for layer in self.recipe.data.layers if layer.debian}
        return (self.recipe.file, *sorted(lists), *sorted(path for path in own.rglob("*") if path.is_file()))

    def _tags(self) -> Sequence[str]:
        if self.recipe.data.version != SUITE:
            return [self._tag()]
        if self.recipe.repository not in self.builder.suite:
            raise InvalidInput(f"{self.recipe.file}: version: {SUITE} is for images of the conformance suite", resolution="move the file to theirs")
        return self.builder.suite[self.recipe.repository]

    def _tag(self) -> str:
        version, release = self.recipe.data.version, self.builder.release
        if version == RELEASE:
            return release.stamp
        if version == CKP:
            return platform_tag()
        if version == AGENT:
            return tag_of_version(self.builder.agents[0].version)
        if version == IMAGE_TAGS:
            if self.recipe.repository not in release.image_tags:
                raise InvalidInput(
                    f"{self.recipe.file}: version: {release.name} has no image tag {self.recipe.repository}",
                    resolution=f"add it to [image_tags] of the release's file, or write what decides the tag: a component, {RELEASE}, {CKP}",
                )
            return release.image_tags[self.recipe.repository]
        if version not in self.builder.built:
            raise InvalidInput(
                f"{self.recipe.file}: version: {release.name} has no component {version!r}",
                resolution=f"write one of: {', '.join([RELEASE, IMAGE_TAGS, CKP, AGENT, *sorted(self.builder.built)])}",
            )
        return self.builder.built[version].chosen.source.version

    def _layer(self, number: int, layer: LayerData) -> Layer | None:
        """A layer; None if the release has none of its contents."""
        if layer.debian:
            return debian_layer(self.recipe.debian_packages(layer.debian, str(self.recipe.file)))
        if program := layer.program:
            return program_layer(program.package, program.path, program.link, extra=program.files)
        contents = self._contents(number, layer)
        return file_layer([entry for place, content in contents for entry in self._entries(content, place)]) if contents else None

    def _contents(self, number: int, layer: LayerData) -> list[tuple[str, Content]]:
        """Those of the release, each with its place in the recipe."""
        found = enumerate(layer.contents)
        return [(f"{self.recipe.file}: layers.{number}.contents.{index}.src", item) for index, item in found if applies(item.when, self.builder.built)]

    def _entries(self, content: Content, place: str) -> list[Entry]:
        mode = int(content.mode, 8)
        if content.type == "symlink":
            return [Entry(content.dst, link=content.src)]
        if content.type == "dir":
            return [Entry(f"{content.dst.rstrip('/')}/", mode=mode)]
        files = self._source(content, place)()
        if len(files) == 1 and not content.dst.endswith("/"):
            return [Entry(content.dst, files[0], mode)]
        return [Entry(f"{content.dst.rstrip('/')}/{file.name}", file, mode) for file in files]

    def _source(self, content: Content, place: str) -> Callable[[], Sequence[Path]]:
        """What a file's `src` names, for when it is needed: some of it is made first. InvalidInput if there is no such source."""
        origin, _, name = content.src.partition("/")
        if origin == "extra":
            if name not in self.builder.extras:
                raise InvalidInput(f"{place}: there is no {content.src}", resolution=f"write extra/ and one of: {', '.join(sorted(self.builder.extras))}")
            return self.builder.extras[name]
        if origin == "self":
            file = self.recipe.own_file(name)
            if not file.exists():
                raise InvalidInput(f"{place}: there is no {file}", resolution="add that file, or correct its name")
            return lambda: (file,)
        path = built_source(content.src, self.builder.built, place)
        return lambda: (path,)


def platform_code() -> Path:
    """The project's own Python for the platform image: a copy without __pycache__, cached by its content."""
    root = paths.source()
    rooms = ("api", "catalog", "clients", "compass", "controllers", "hub", "kits", "rules", "runtime")
    files = [path for room in rooms for path in sorted((root / room).rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    files.append(root / "__init__.py")
    key = sha256_bytes("\n".join(f"{path.relative_to(root)} {sha256_file(path)}" for path in files).encode())[:20]
    final = paths.cache() / "platform-code" / key
    with exclusive(final.with_name(final.name + ".lock"), what="copying the platform's code", timeout=120):
        if not final.exists():
            with building_directory(final) as scratch:
                for path in files:
                    target = scratch / path.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)
    return final


def platform_tag() -> str:
    """The tag of CKP's own images: CKP's version and a hash of the code, so that changed code is rolled out and unchanged code is not."""
    from ckp import __version__

    return f"v{__version__}-{platform_code().name[:8]}"


def python_site(name: str) -> Path:
    """The packages of `requirements/<name>.txt` for Debian 12's Python 3.11, hash-checked by pip, compiled without timestamps."""
    requirements = paths.data("requirements", f"{name}.txt")
    final = paths.cache() / "python" / f"{name}-{sha256_file(requirements)[:20]}"
    with exclusive(final.with_name(final.name + ".lock"), what="fetching Python packages", timeout=900):
        if not final.exists():
            with building_directory(final) as scratch:
                install_locked(requirements, scratch, python="3.11", glibc=36)
                compileall.compile_dir(scratch, quiet=2, stripdir=str(scratch), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    return final
