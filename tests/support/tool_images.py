"""Images of programs that only the tests use (catalog/test-tools.toml), made as a release's and no part of one: their recipes lie in `tests/images`."""

from __future__ import annotations

from ckp.catalog.load import Catalog
from ckp.clients.oci.registry import Registry
from ckp.distribution.images.layers import store
from ckp.distribution.images.make import ImageBuilder
from ckp.distribution.images.recipes import read_images
from tests.support.checkout import REPO
from tests.support.control_plane import RELEASE, built_test_tool

RECIPES = REPO / "tests" / "images"
PREFIX = "tests"
"""Repositories of a registry that no release looks at."""


def push_tool_image(name: str, registry: Registry) -> str:
    """Make the image of this name and push it; returns `repository:tag`, as it is called in that registry."""
    recipes = [recipe for recipe in read_images(RECIPES) if recipe.repository == name]
    release = Catalog().release(RELEASE)
    [image] = ImageBuilder(release, {recipe.data.version: built_test_tool(recipe.data.version) for recipe in recipes}, print).of(recipes)
    registry.push(store(), image.manifest(), f"{PREFIX}/{image.repository}", image.tag)
    return f"{PREFIX}/{image.repository}:{image.tag}"
