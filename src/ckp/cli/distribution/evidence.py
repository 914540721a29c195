"""`ckp dist sbom`, `provenance`, `reproduce` and `compare`: evidence of what a release contains, what it was built from, and that it can be rebuilt.

`sbom` and `provenance` show the documents about one artifact, built here or in a registry. `reproduce` builds a release again and compares it bit by bit;
`compare` shows in what our programs differ from upstream's. The work is done in ckp.distribution.artifacts, .attest and .prove; here are options and tables.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import click

from ckp.catalog.load import Catalog, Profile
from ckp.cli.distribution.release import DEFAULT_HELP, PROFILE_OPTION, default_release
from ckp.cli.trust import trusted_image_key
from ckp.cli.view.output import Column, describe, echo, show_data, table
from ckp.clients.oci.registry import Registry
from ckp.clients.signing import dsse
from ckp.clients.signing.openpgp import IMAGE_PUBLIC, KEYRING
from ckp.distribution.artifacts import Artifacts
from ckp.distribution.attest.attestations import attached_sbom, attached_statement
from ckp.distribution.attest.builtrelease import find_roles, open_built_release
from ckp.distribution.prove.compare import Comparison, compare_programs, compare_tree, table_rows
from ckp.distribution.prove.compare import compare as compare_program
from ckp.distribution.prove.reproduce import Expected, Finding, Reproduction
from ckp.distribution.prove.upstream import read_upstream
from ckp.distribution.registries.verification import Reference
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, NotFound, VerificationFailed

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_release = click.option("--release", "release", default=default_release, show_default=DEFAULT_HELP, help="The release in which NAME is looked up.")
_format = click.option("--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Output format.")


def _registry_options(command: F) -> F:
    for option in (
        click.option(
            "--image-key", type=_FILE, default=None, help="Public keys (PEM), one of which must have signed the provenance; default: this machine's own."
        ),
        click.option("--registry-ca", type=_FILE, default=None, help="The CA of the registry's certificate; default: those that this system trusts."),
        click.option("--credentials", type=_FILE, default=None, help="Users and passwords, in the format of docker's config.json, readable by its owner only."),
    ):
        command = option(command)
    return command


@contextmanager
def _manifest(text: str, ca: Path | None, credentials: Path | None) -> Iterator[tuple[Registry, str, str]]:
    """The registry, the repository and the digest that a reference names."""
    reference = Reference.parse(text)
    registry = Registry(reference.address, ca, credentials=credentials)
    try:
        digest = reference.digest or registry.digest(reference.repository, reference.tag)
        if not digest:
            raise NotFound(f"{text} does not exist")
        if reference.tag and reference.digest and registry.digest(reference.repository, reference.tag) != reference.digest:
            raise VerificationFailed(f"the tag of {text} names another digest now", resolution="give the digest alone, or find out who moved the tag")
        yield registry, reference.repository, digest
    finally:
        registry.close()


def _is_reference(target: str) -> bool:
    first, slash, _ = target.partition("/")
    return bool(slash) and not Path(target).exists() and (":" in first or "." in first)


def _quiet(_: str) -> None:
    """Takes lines of progress and prints none."""


@click.command("sbom")
@click.argument("target", metavar="NAME|PATH|IMAGE")
@_release
@PROFILE_OPTION
@_format
@_registry_options
def sbom(target: str, release: str, profile: Profile, output: str, image_key: Path | None, registry_ca: Path | None, credentials: Path | None) -> None:
    """Show the software bill of materials (SBOM) of an artifact, as CycloneDX.

    NAME is a program (kubelet), a package (kubelet.deb), an image (image/kube-apiserver) or a bundle (ubuntu_22.04) of the release as built on this
    machine. PATH is a package, or any program written in Go. IMAGE is host:port/repository:tag: its attached SBOM is shown if the signed provenance
    names it.
    """
    if _is_reference(target):
        with _manifest(target, registry_ca, credentials) as (registry, repository, digest):
            document = attached_sbom(registry, repository, digest, trusted_image_key(image_key))
    else:
        artifacts = Artifacts(Catalog(), release, profile, _quiet)
        document = artifacts.sbom(artifacts.find(target))
    if output == "json":
        show_data(document, "json")
    else:
        _show_sbom(document)


def _show_sbom(document: Mapping[str, Any]) -> None:
    root = document["metadata"]["component"]
    whole = all(part["aggregate"] == "complete" for part in document["compositions"])
    digest = next((item["content"] for item in root.get("hashes", [])), "")
    pairs = [("Name", root["name"]), ("Version", root.get("version", "")), ("SHA-256", digest), ("Complete", whole), ("Parts", len(document["components"]))]
    echo(describe(pairs) + "\n")
    columns = [
        Column("TYPE", lambda item: item["type"]),
        Column("NAME", lambda item: item["name"]),
        Column("VERSION", lambda item: item.get("version", "")),
        Column("HASH", _hash),
        Column("LICENCE", _licence),
    ]
    echo(table(columns, document["components"]))


def _hash(item: Mapping[str, Any]) -> str:
    named = {entry["name"]: entry["value"] for entry in item.get("properties", [])}
    plain = next((f"sha256:{entry['content']}" for entry in item.get("hashes", [])), "")
    return str(plain or named.get("ckp:go.sum") or named.get("ckp:record-sha256") or "")


def _licence(item: Mapping[str, Any]) -> str:
    entries = item.get("licenses", [])
    return ", ".join(entry.get("expression") or entry["license"].get("id") or entry["license"].get("name", "") for entry in entries)


@click.command("provenance")
@click.argument("target", metavar="NAME|PATH|IMAGE")
@_release
@PROFILE_OPTION
@_format
@_registry_options
def provenance(target: str, release: str, profile: Profile, output: str, image_key: Path | None, registry_ca: Path | None, credentials: Path | None) -> None:
    """Show the provenance of an artifact: its sources, toolchain and flags, as an in-toto statement with SLSA's predicate.

    Targets are those of `ckp dist sbom`, and the PATH of a signed envelope. The signature of an IMAGE or envelope is checked first; exit code 3 if it is bad.
    """
    signed = ""
    if _is_reference(target):
        with _manifest(target, registry_ca, credentials) as (registry, repository, digest):
            statement = attached_statement(registry, repository, digest, trusted_image_key(image_key))
        signed = f"good, by {image_key or paths.keys() / IMAGE_PUBLIC}"
    elif Path(target).is_file() and Path(target).suffix in (".json", ".jsonl", ".intoto"):
        statement = dsse.open_envelope(Path(target).read_bytes(), trusted_image_key(image_key))
        signed = f"good, by {image_key or paths.keys() / IMAGE_PUBLIC}"
    else:
        artifacts = Artifacts(Catalog(), release, profile, _quiet)
        statement = artifacts.statement(artifacts.find(target))
    echo(f"signature: {signed or 'none: made from what is built on this machine; it is signed when it is pushed'}", err=True)
    if output == "json":
        show_data(statement, "json")
    else:
        _show_statement(statement)


def _show_statement(statement: Mapping[str, Any]) -> None:
    definition = statement["predicate"]["buildDefinition"]
    subjects = [f"{item['name']} sha256:{item['digest'].get('sha256', '')}" for item in statement["subject"]]
    pairs: list[tuple[str, Any]] = [("Subject", ", ".join(subjects)), ("Builder", statement["predicate"]["runDetails"]["builder"]["id"])]
    pairs += [(name, value) for name, value in sorted(definition["externalParameters"].items())]
    echo(describe(pairs))
    for name, how in sorted(definition["internalParameters"]["components"].items()):
        echo(f"\n{name}{' in place of ' + how['standsInFor'] if 'standsInFor' in how else ''}:")
        echo(f"  {'gcc' if name.startswith('pause ') else 'go build'} " + " ".join(f"'{part}'" if " " in part or not part else part for part in how["flags"]))
        echo("  " + " ".join(f"{key}={value}" for key, value in sorted(how["environment"].items())))
    columns: list[Column[Any]] = [
        Column("KIND", lambda item: item.get("annotations", {}).get("kind", "")),
        Column("NAME", lambda item: item["name"]),
        Column("DIGEST", lambda item: ", ".join(f"{kind}:{value}" for kind, value in item.get("digest", {}).items())),
    ]
    echo("\n" + table(columns, definition["resolvedDependencies"]))


@click.command("reproduce")
@click.argument("name", default=default_release)
@click.option("--component", "components", multiple=True, help="Rebuild only the programs of this component; may be repeated.")
@PROFILE_OPTION
@click.option(
    "--against", multiple=True, metavar="FILE|IMAGE", help="Published provenance to compare with; may be repeated; default: what is built on this machine."
)
@click.option("--keyring", type=_FILE, default=None, help="The published OpenPGP keys, which are part of the agent's package; default: this machine's own.")
@click.option("--fresh-modules", is_flag=True, help="Download all sources again, instead of using this machine's module cache.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Working folder, emptied before and after; default: one below the temporary folder.",
)
@_format
@_registry_options
def reproduce(
    name: str,
    components: tuple[str, ...],
    profile: Profile,
    against: tuple[str, ...],
    keyring: Path | None,
    fresh_modules: bool,
    directory: Path | None,
    output: str,
    image_key: Path | None,
    registry_ca: Path | None,
    credentials: Path | None,
) -> None:
    """Rebuild release NAME in another folder, and compare it bit by bit. Exit code 3 if anything differs, or was published and not rebuilt.

    Packages are compared without their signatures. A whole release takes an hour or more on a small machine, a component minutes.
    """
    catalog = Catalog()
    release = catalog.release(name)
    roles = find_roles(catalog, release, profile, components)
    if against:
        expected = Expected.of([_published(item, image_key, registry_ca, credentials) for item in against])
    else:
        expected = _expected_here(catalog, name, profile, roles)
    folder = directory or Path(tempfile.gettempdir()) / f"ckp-reproduce-{release.name}"
    say = _quiet if output == "json" else echo
    own = paths.keys() / KEYRING
    ring = keyring or (own if own.exists() else None)
    findings = Reproduction(catalog, release, profile, expected, folder, say, fresh_modules, ring).run(roles)
    _show_findings(findings, output)
    wrong = [finding for finding in findings if finding.verdict in ("differs", "not made again")]
    if wrong or not any(finding.verdict == "identical" for finding in findings):
        raise VerificationFailed(
            f"{len(wrong)} of {len(findings)} artifacts differ from what was published",
            details="\n".join(f"{finding.kind} {finding.name} {finding.verdict}" for finding in wrong),
            resolution="check that release file, profile and checkout are the same; the notes say where the difference lies",
        )


def _expected_here(catalog: Catalog, name: str, profile: Profile, roles: Sequence[str]) -> Expected:
    artifacts = Artifacts(catalog, name, profile, _quiet)
    if roles:
        artifacts.built = open_built_release(catalog, catalog.release(name), profile, roles)
    expected = Expected.of(artifacts.statements(everything=not roles))
    for item in artifacts.built.programs.values():
        expected.files["binary", f"{item.source.component}/{item.name}"] = item.path
    return expected


def _published(item: str, image_key: Path | None, ca: Path | None, credentials: Path | None) -> dict[str, Any]:
    if Path(item).is_file():
        return dsse.open_envelope(Path(item).read_bytes(), trusted_image_key(image_key))
    with _manifest(item, ca, credentials) as (registry, repository, digest):
        return attached_statement(registry, repository, digest, trusted_image_key(image_key))


def _show_findings(findings: Sequence[Finding], output: str) -> None:
    if output == "json":
        show_data({"items": [finding.to_json() for finding in findings]}, "json")
        return
    columns: list[Column[Finding]] = [
        Column("KIND", lambda item: item.kind),
        Column("COMPONENT", lambda item: item.component),
        Column("NAME", lambda item: item.name),
        Column("PUBLISHED", lambda item: item.expected[:16]),
        Column("MADE AGAIN", lambda item: item.found[:16]),
        Column("VERDICT", lambda item: item.verdict),
        Column("NOTE", lambda item: item.note),
    ]
    echo(table(columns, findings))


@click.command("compare")
@click.argument("name", default=default_release)
@click.option("--binary", "binaries", multiple=True, help="Only this program; may be repeated.")
@PROFILE_OPTION
@click.option("--upstream", type=_FILE, default=None, help="A program that upstream built, to compare with the one given by --binary.")
@click.option("--upstream-tree", type=_FOLDER, default=None, help="A checkout of upstream's tree, with which staging modules are compared file by file.")
@_format
def compare(name: str, binaries: tuple[str, ...], profile: Profile, upstream: Path | None, upstream_tree: Path | None, output: str) -> None:
    """Compare each program of release NAME with upstream's: modules by hash, toolchain, flags, version stamps.

    Exit code 3 if anything differs that is not declared as deliberate.
    """
    if upstream and len(binaries) != 1:
        raise InvalidInput("--upstream compares one program", resolution="name it with --binary")
    catalog = Catalog()
    built = open_built_release(catalog, catalog.release(name), profile)
    go = built.reader.go()
    comparisons = []
    for program in [built.program(binary) for binary in binaries] or list(built.programs.values()):
        info = built.reader.program(program)
        theirs = read_upstream(go, info.main)
        found = compare_program(program.name, info, program.source, built.stamp, theirs, go)
        extra = compare_programs(program.name, info, built.reader.read(upstream), theirs) if upstream else []
        if upstream_tree and _is_tree_of(upstream_tree, info.main.path):
            extra += compare_tree(info, theirs, upstream_tree, go)
        comparisons.append(Comparison(found.program, found.component, found.main, found.go, (*found.checks, *extra)))
    if upstream_tree and not any(item.about("tree") for item in comparisons):
        raise InvalidInput(f"{upstream_tree} is not the tree of any of these programs", resolution="give the folder that has the main module's go.mod")
    _show_comparisons(comparisons, output)
    if wrong := [item for item in comparisons if not item.identical]:
        details = "\n".join(
            f"{item.program}: {check.about} {check.name}: {check.ours}, not {check.upstream}" for item in wrong for check in item.findings("differs")
        )
        raise VerificationFailed(
            f"{len(wrong)} of {len(comparisons)} programs differ from upstream's",
            details=details,
            resolution="correct the lock, or declare the difference as deliberate in ckp.distribution.prove.compare",
        )


def _is_tree_of(folder: Path, module: str) -> bool:
    mod = folder / "go.mod"
    return mod.is_file() and f"module {module}" in mod.read_text().splitlines()


def _show_comparisons(comparisons: Sequence[Comparison], output: str) -> None:
    if output == "json":
        show_data({"items": [item.to_json() for item in comparisons]}, "json")
        return
    rows = table_rows(comparisons)
    heads = ("program", "component", "modules", "go", "flags", "stamps", "verdict")
    echo(table([Column(head.upper(), itemgetter(head)) for head in heads], rows))
    differing = [(item.program, check) for item in comparisons for check in item.findings("differs", "deliberate", "stamp")]
    if differing:
        echo("\nDifferences:")
        columns: list[Column[Any]] = [
            Column("PROGRAM", lambda row: row[0]),
            Column("WHAT", lambda row: f"{row[1].about} {row[1].name}"),
            Column("OURS", lambda row: row[1].ours),
            Column("UPSTREAM", lambda row: row[1].upstream),
            Column("VERDICT", lambda row: row[1].verdict),
            Column("WHY", lambda row: row[1].note),
        ]
        echo(table(columns, differing))
