"""Recipes of images as data: `packaging/images/<repository>.toml`, and the lists of Debian packages in `packaging/images/debian/`.

A new image is a new file there. See `Data` for its keys. Other folders have the same shape: `packaging/conformance/images` for those of the conformance suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ckp.distribution.packages.recipefile import Strict, read_recipe
from ckp.kits import paths
from ckp.kits.errors import InvalidInput

RELEASE, IMAGE_TAGS, CKP, AGENT, SUITE = "release", "image_tags", "ckp", "agent", "suite"
"""Values of a recipe's `version` that are not a component."""
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*=")]


class Content(Strict):
    """A file, folder or link of an image; a folder as `src` brings all that is in it. A file whose `dst` ends with / keeps its name below that.

    Sources are `<component>/bin/<program>`, `<component>/files/<path>`, `self/<file>` (in a folder beside the recipe that has the image's name)
    or `extra/<name>` (see ckp.distribution.images.make.ImageBuilder); of a link, its target.
    """

    dst: AbsolutePath
    src: str = ""
    type: Literal["file", "dir", "symlink"] = "file"
    mode: Annotated[str, StringConstraints(pattern=r"^[0-7]{4}$")] = "0644"
    when: dict[str, str] = {}
    """Left out unless each of these roles is played by the component named."""

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if (self.type == "dir") == bool(self.src):
            raise ValueError("a dir has no src" if self.src else f"a {self.type} needs a src")
        return self


class Program(Strict):
    """One program of a Debian package with its shared libraries, without the rest of the package."""

    package: str
    path: AbsolutePath
    link: AbsolutePath
    """A further name for it."""
    files: tuple[str, ...] = ()
    """Patterns of further files of the package and its dependencies, relative to the root."""


class LayerData(Strict):
    """A layer: one of `debian` (a list in `packaging/images/debian/`), `program` and `contents`."""

    debian: str = ""
    program: Program | None = None
    contents: tuple[Content, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.debian) + (self.program is not None) + bool(self.contents) != 1:
            raise ValueError("a layer has one of debian, program and contents")
        return self


class Data(Strict):
    """An image's file.

    `version` decides the tag: a component (its version), `release` (the release's stamp), `image_tags` (the release file's entry for this image),
    `ckp` or `agent` (those of CKP's own code), `suite` (all tags that the release's conformance suite asks for).
    """

    version: str
    layers: Annotated[tuple[LayerData, ...], Field(min_length=1)]
    when: dict[str, str] = {}
    """Made only of releases where each of these roles is played by the component named."""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    """Arguments of the entrypoint, or what is run where there is none, unless a container says otherwise."""
    user: str = ""
    env: tuple[Variable, ...] = ()
    """NAME=value, besides PATH."""
    workdir: AbsolutePath = "/"


class DebianList(Strict):
    """Packages that a minimal Debian file system has in addition."""

    packages: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True)
class ImageRecipe:
    """One image's recipe; its repository is the name of the file."""

    file: Path
    data: Data

    @property
    def repository(self) -> str:
        """The image's repository below the registry's prefix."""
        return self.file.stem

    def own_file(self, name: str) -> Path:
        """What `self/<name>` is."""
        return self.file.parent / self.repository / name

    def debian_file(self, name: str) -> Path:
        """The file of a list of Debian packages."""
        return self.file.parent / "debian" / f"{name}.toml"

    def debian_packages(self, name: str, where: str) -> tuple[str, ...]:
        """A list of Debian packages. InvalidInput if there is none of this name, or it is malformed."""
        file = self.debian_file(name)
        if not file.exists():
            known = ", ".join(sorted(path.stem for path in file.parent.glob("*.toml")))
            raise InvalidInput(f"{where}: there is no list {file}", resolution=f"write one of: {known}; or add that file")
        return read_recipe(file, DebianList, "a Debian file system").packages


def read_images(folder: Path | None = None) -> list[ImageRecipe]:
    """All recipes of images in a folder (default: those of releases), by name. InvalidInput names the file and key that is wrong."""
    folder = folder or paths.data("packaging", "images")
    return [ImageRecipe(file, read_recipe(file, Data, "an image")) for file in sorted(folder.glob("*.toml"))]
