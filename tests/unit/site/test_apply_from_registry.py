"""`ckp site apply` takes releases from a registry that an option or the site's file names; that of the management cluster is built or comes from a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ckp.catalog.load import Catalog
from ckp.cli import deliverables
from ckp.cli.deliverables import Origins
from ckp.cli.site_apply import source_of
from ckp.distribution.carry.published import Source
from ckp.kits.errors import Conflict, InvalidInput
from ckp.site.spec.read import InvalidSite, read_site
from tests.worlds.applied_site import AppliedSite, Release

OTHER = "v1.34.3"
NAMED = ("releases: [v1.35.1]", f"releases: [v1.35.1, {OTHER}]\nreleasesFrom: {{registry: other.test:5000}}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppliedSite:
    made = AppliedSite(tmp_path, monkeypatch)
    made.taken = []  # type: ignore[attr-defined]
    built = deliverables.make_release

    def published(release: SimpleNamespace, source: Source, *_: object) -> Release:
        found = made.made(release.name)
        found.tags = {name: tag for name, tag in found.tags.items() if not name.startswith("ckp-")}
        made.taken.append(f"{release.name} of {source.address}")  # type: ignore[attr-defined]
        return found

    def build(catalog: object, release: SimpleNamespace, *rest: object) -> Release:
        made.taken.append(f"{release.name} built")  # type: ignore[attr-defined]
        return built(catalog, release, *rest)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(deliverables, "published_release", published)
    monkeypatch.setattr(deliverables, "make_release", build)
    return made


def taken(site: AppliedSite) -> list[str]:
    found: list[str] = site.taken  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("by", ["option", "file"])
def test_all_but_the_management_clusters_release_come_from_it(site: AppliedSite, by: str) -> None:
    site.write(NAMED if by == "file" else ("releases: [v1.35.1]", f"releases: [v1.35.1, {OTHER}]"))
    done = site.run("apply", *(["--from-registry", "other.test:5000"] if by == "option" else []))
    assert done.exit_code == 0, done.output
    assert taken(site) == [f"{OTHER} of other.test:5000", "v1.35.1 built"]
    table = site.host.table.releases
    assert set(table) == {"v1.35.1", OTHER}
    assert table[OTHER].addons == table["v1.35.1"].addons != "", "the charts are the site's own"


def test_an_option_counts_more_than_the_file(site: AppliedSite) -> None:
    site.write(NAMED)
    assert site.run("apply", "--from-registry", "third.test:5000").exit_code == 0
    assert taken(site)[0] == f"{OTHER} of third.test:5000"


def test_a_file_counts_more_than_the_registry(site: AppliedSite) -> None:
    site.write(NAMED)
    assert site.run("apply", *site.taking([OTHER])).exit_code == 0
    assert taken(site) == ["v1.35.1 built"]


def test_the_address_in_the_file_may_lack_its_port_and_is_checked(site: AppliedSite) -> None:
    site.write((NAMED[0], NAMED[1].replace("other.test:5000", "other.test")))
    assert source_of(read_site(site.file)) == Source("other.test:443")
    site.write((NAMED[0], NAMED[1].replace("other.test:5000", "https://other.test")))
    with pytest.raises(InvalidSite):
        read_site(site.file)
    site.write()
    assert source_of(read_site(site.file)) is None
    with pytest.raises(InvalidInput, match="for --from-registry"):
        site.run("apply", "--registry-ca", str(site.file))


def test_a_release_with_other_addons_is_refused_before_anything_is_changed() -> None:
    catalog = Catalog()
    main, other = catalog.release("v1.35.1"), catalog.release(OTHER)
    origins = Origins(registry=Source("other.test:5000"), management=main.name)
    origins.refuse([main, other])
    with pytest.raises(Conflict, match="has other addons than"):
        origins.refuse([main, other.model_copy(update={"cni": {**other.cni, "cilium": "v0.0.1"}})])


def test_the_plan_of_steps_says_what_is_built_and_what_is_looked_up() -> None:
    catalog = Catalog()
    wanted = [catalog.release(OTHER), catalog.release("v1.35.1")]
    origins = Origins(registry=Source("other.test:5000"), management="v1.35.1")
    titles = origins.titles(wanted)
    assert titles[0] == f"Verifying {OTHER}-ckp in other.test:5000" and titles[1].startswith("Building v1.35.1") and origins.builds(wanted)
    assert not Origins(registry=Source("other.test:5000")).builds(wanted)
