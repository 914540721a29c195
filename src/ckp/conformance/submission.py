"""The four files of a submission to the CNCF's programme, from a run that qualifies.

The rules are those of cncf/k8s-conformance (instructions.md, reviewing.md): e2e.log and junit_01.xml of one whole run, in which nothing failed, was
pending or flaked, whose versions of test and API server are those of the folder; PRODUCT.yaml; README.md with how to do it again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ckp.conformance.ginkgo import JUNIT, LOG
from ckp.conformance.records import RESULTS, Record
from ckp.conformance.results import Results
from ckp.kits.errors import InvalidInput
from ckp.kits.files import atomic_write

PRODUCT, README = "PRODUCT.yaml", "README.md"
SUCCESS = re.compile(r"^SUCCESS! -- (?P<passed>\d+) Passed \| 0 Failed \| 0 Pending \| \d+ Skipped$", re.MULTILINE)
FLAKED = re.compile(r"^(?:SUCCESS|FAIL)!.*\d+ Flaked", re.MULTILINE)
VERSIONS = {"the tests'": re.compile(r"e2e test version: (v\d+\.\d+)\."), "the API server's": re.compile(r"kube-apiserver version: (v\d+\.\d+)\.")}


@dataclass(frozen=True)
class Product:
    """What PRODUCT.yaml says besides the version. Addresses are https URLs; the logo is an SVG file."""

    documentation_url: str
    product_logo_url: str
    contact_email_address: str
    vendor: str = "Coredge.io"
    name: str = "Coredge Kubernetes Platform (CKP)"
    website_url: str = "https://coredge.io"
    type: str = "distribution"
    description: str = "Kubernetes built from upstream source into signed packages, with hosted control planes and people's own hosts as workers."

    def check(self) -> None:
        """InvalidInput if a field can't be right."""
        for field in ("documentation_url", "product_logo_url", "website_url"):
            if not re.fullmatch(r"https://[^\s/]+(/\S*)?", getattr(self, field)):
                raise InvalidInput(f"{field} is {getattr(self, field)!r}, which is not an address", resolution="write it as https://HOST/PATH")
        if not self.product_logo_url.endswith(".svg"):
            raise InvalidInput(f"product_logo_url is {self.product_logo_url!r}", resolution="name an SVG file: the programme takes no other format")
        if not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", self.contact_email_address):
            raise InvalidInput(f"contact_email_address is {self.contact_email_address!r}, which is not a mail address", resolution="write it as NAME@DOMAIN")

    def document(self, version: str) -> Mapping[str, str]:
        """PRODUCT.yaml as data."""
        fields = ("vendor", "name", "website_url", "documentation_url", "product_logo_url", "type", "description", "contact_email_address")
        data = {field: str(getattr(self, field)) for field in fields}
        return {"vendor": data.pop("vendor"), "name": data.pop("name"), "version": version, **data}


def minor(version: str) -> str:
    """`v1.35` of `v1.35.1-ckp`."""
    found = re.match(r"v\d+\.\d+", version)
    if found is None:
        raise InvalidInput(f"{version!r} is not a version of Kubernetes")
    return found.group()


def reasons_against(record: Record, results: Results, log: str) -> list[str]:
    """Why a run does not qualify; none if it does."""
    plan = record.plan
    found: list[str] = []
    if not plan.submission:
        found.append("it was not made with --submission: a submission is the whole suite, one test after the other, in one run")
    if len(plan.tests) != plan.total:
        found.append(f"it has {len(plan.tests)} tests, and the suite of {plan.release} has {plan.total}")
    if not (record.folder / RESULTS).exists() or results.missing:
        found.append("it is not complete")
    if results.failed:
        found.append(f"{len(results.failed)} tests failed")
    if sum(len(record.attempts(phase)) for phase in plan.phases) != 1:
        found.append("it was broken off and went on")
    success = SUCCESS.findall(log)
    if len(success) != 1 or int(success[0]) != plan.total:
        found.append(f"{LOG} does not end with {plan.total} passed, 0 failed, 0 pending")
    if FLAKED.search(log):
        found.append("tests passed only at a second attempt")
    for whose, pattern in VERSIONS.items():
        if {*pattern.findall(log)} != {minor(plan.release)}:
            found.append(f"{LOG} does not say that {whose} version is {minor(plan.release)}")
    return found


def write_submission(record: Record, product: Product, target: Path) -> Path:
    """The folder `target`/<minor>/ckp with the four files.

    Raises:
        InvalidInput: the run does not qualify, with every reason; or a field of the product is wrong. Nothing was written.
    """
    product.check()
    results = Results.of(record)
    attempts = [attempt for phase in record.plan.phases for attempt in record.attempts(phase)]
    log = (attempts[0] / LOG).read_text(errors="replace") if attempts and (attempts[0] / LOG).exists() else ""
    if against := reasons_against(record, results, log):
        raise InvalidInput(
            f"the run {record.folder.name} does not qualify for a submission",
            details="\n".join(against),
            resolution="make one that does: ckp conformance run --submission",
        )
    folder = target / minor(record.plan.release) / "ckp"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(attempts[0] / LOG, folder / LOG)
    shutil.copyfile(attempts[0] / JUNIT, folder / JUNIT)
    atomic_write(folder / PRODUCT, yaml.safe_dump(dict(product.document(record.plan.version)), sort_keys=False, width=1000))
    atomic_write(folder / README, readme(record, results))
    return folder


def readme(record: Record, results: Results) -> str:
    """README.md: how anyone makes such a cluster and runs the suite on it."""
    release = record.plan.release
    return f"""# Conformance of CKP {record.plan.version}

On a machine with Debian 12 or Ubuntu 24.04, as root, with 2 cores and 16 GiB of memory or more, in a clone of CKP:

```
make up RELEASE={release}
./ckp conformance run --submission
./ckp conformance submission --documentation-url URL --logo-url URL
```

`make up` builds {release} from upstream's source, signs it, and makes a cluster of it: a hosted control plane and two workers. The second command builds
upstream's `e2e.test` and `ginkgo` from the same source, makes the images that the tests ask for, and runs all {record.plan.total} tests one after the other.

Outcome of the run of {record.plan.started}: {results.sentence()}.
"""
