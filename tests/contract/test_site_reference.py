"""docs/reference/site.md says of `site.yaml` what the model says, and its example is a site."""

from __future__ import annotations

import re
from pathlib import Path

from ckp.site.spec import reference
from ckp.site.spec.read import parse_site
from tests.support.checkout import REPO


def test_the_page_is_what_the_model_gives() -> None:
    assert (REPO / reference.PAGE).read_text() == reference.markdown(), "run `./ckp site reference --write`"


def test_the_example_of_the_page_is_a_site() -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", (REPO / reference.PAGE).read_text(), re.DOTALL)
    assert parse_site(example.encode(), Path("/site.yaml")).metadata.name == reference.EXAMPLE.name


def test_readers_find_the_page() -> None:
    assert f"({reference.PAGE})" in (REPO / "README.md").read_text()
