"""`ckp site`: the file that describes a site, and what is done with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Generic, TypeVar

import click
from click.shell_completion import CompletionItem

from ckp.cli.distribution.release import DEFAULT_HELP
from ckp.cli.lazy import Lazy, LazyGroup
from ckp.cli.view.output import Column, echo, output_option, show_data, table
from ckp.kits.errors import InvalidInput
from ckp.kits.files import atomic_write
from ckp.site.check.model import Finding, Severity
from ckp.site.spec import reference, template
from ckp.site.spec.findings import Refused
from ckp.site.spec.model import HOST_COUNTS
from ckp.site.spec.read import InvalidSite, parse_site, read_site, read_value
from ckp.site.spec.template import Answers
from ckp.site.spec.types import Address, Label, Network, ReleaseName, UserName, catalog_releases, newest_release

FILE = Path("site.yaml")
CHECK_COLUMNS: tuple[Column[Finding], ...] = (
    Column("HOST", lambda finding: finding.host or "(site)"),
    Column("CHECK", lambda finding: finding.check),
    Column("SEVERITY", lambda finding: finding.severity.value),
    Column("FINDING", lambda finding: finding.what),
    Column("REMEDY", lambda finding: finding.remedy),
)
USER_DEFAULT = "root"
T = TypeVar("T")
Pool = tuple[IPv4Address, IPv4Address]
NamedHost = tuple[str, IPv4Address]


@dataclass(frozen=True)
class Options:
    """What options say; None, or no host, where there was none."""

    name: str | None
    hosts: tuple[NamedHost, ...]
    user: str | None
    network: IPv4Network | None
    pool: Pool | None
    virtual_address: IPv4Address | None
    release: str | None


class Value(click.ParamType[T], Generic[T]):
    """A value as `site.yaml` takes it.

    Args:
        read: reads it from text, or raises Refused.
        names: what completion offers.
    """

    def __init__(self, name: str, read: Callable[[str], T], names: Callable[[], tuple[str, ...]] = tuple) -> None:
        self.name = name
        self.read = read
        self.names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        """Read it, or fail with what to write instead."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        try:
            return self.read(value.strip())
        except Refused as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that begin with `incomplete`."""
        return [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]


def of(hint: Any) -> Callable[[str], Any]:
    """Reads text as a type of the model."""
    return lambda text: read_value(hint, text)


def read_host(text: str) -> NamedHost:
    """`NAME=ADDRESS`."""
    name, sign, address = text.partition("=")
    if not sign:
        raise Refused(f"{text!r} is not NAME=ADDRESS", "write it like node-1=192.0.2.11")
    return read_value(Label, name), read_value(Address, address)


def read_hosts(text: str) -> tuple[NamedHost, ...]:
    """Several of them, with spaces or commas between."""
    hosts = tuple(read_host(part) for part in text.replace(",", " ").split())
    if len(hosts) not in HOST_COUNTS:
        raise Refused(f"these are {len(hosts)} hosts", "name 1, 3 or 5")
    return hosts


def read_pool(text: str) -> Pool:
    """`FIRST-LAST`."""
    first, sign, last = text.partition("-")
    if not sign:
        raise Refused(f"{text!r} is not FIRST-LAST", "write it like 192.0.2.200-192.0.2.249")
    return read_value(Address, first.strip()), read_value(Address, last.strip())


def releases() -> tuple[str, ...]:
    """Names of all releases, for completion."""
    return catalog_releases()


NAME: Value[str] = Value("name", of(Label))
HOST = Value("name=address", read_host)
HOSTS = Value("name=address", read_hosts)
USER: Value[str] = Value("user", of(UserName))
NETWORK: Value[IPv4Network] = Value("cidr", of(Network))
POOL = Value("first-last", read_pool)
ADDRESS: Value[IPv4Address] = Value("address", of(Address))
RELEASE: Value[str] = Value("release", of(ReleaseName), releases)


site_file = click.option("-f", "--file", default=FILE, show_default=True, type=click.Path(path_type=Path), help="The site's file.")
"""Of commands that read it: `read_site` says what to do where it is not there."""
LAZY = {
    "backup": Lazy("ckp.cli.site_backup:backup", "Back up a whole site into one encrypted, signed file, and prove such a file."),
    "apply": Lazy("ckp.cli.site_apply:apply", "Make the site as its file describes it."),
    "plan": Lazy("ckp.cli.site_plan:plan", "Show what applying the site's file would change, and what each change interrupts."),
    "registry": Lazy("ckp.cli.site_registry:registry", "The site's own registry."),
    "release": Lazy("ckp.cli.site_releases:release", "The releases that a site offers."),
    "remove": Lazy("ckp.cli.site_changes:remove", "Take everything of a site from its management hosts, which are then as they were before."),
    "restore": Lazy("ckp.cli.site_restore:restore", "Bring a site back from a backup, onto a new management host."),
    "status": Lazy("ckp.cli.site_changes:status", "Show what of a site is as it should be."),
    "upgrade": Lazy("ckp.cli.site_upgrade:upgrade", "Move a site from the version of CKP before to this one."),
}


@click.group(cls=LazyGroup, lazy=LAZY)
def site() -> None:
    """The file that describes a site, and what is done with it."""


@site.command()
@click.argument("file", default=FILE, type=click.Path(path_type=Path))
@click.option("--name", type=NAME, metavar="NAME", help="The site's name.")
@click.option("--host", "hosts", type=HOST, multiple=True, metavar="NAME=ADDRESS", help="A management host; repeat for three or five.")
@click.option(
    "--user", type=USER, metavar="USER", help=f"User to log in as on the hosts by SSH; default: {USER_DEFAULT}. Another one needs sudo without a password."
)
@click.option("--network", type=NETWORK, metavar="CIDR", help="Network that the hosts have their addresses in.")
@click.option("--pool", type=POOL, metavar="FIRST-LAST", help="Free addresses of that network, for load balancers.")
@click.option("--virtual-address", type=ADDRESS, metavar="ADDRESS", help="A free address of that network, for the API of three or five hosts.")
@click.option("--release", type=RELEASE, metavar="RELEASE", help=f"Kubernetes release that the site offers; default: {DEFAULT_HELP}.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def init(
    file: Path,
    name: str | None,
    hosts: tuple[NamedHost, ...],
    user: str | None,
    network: IPv4Network | None,
    pool: Pool | None,
    virtual_address: IPv4Address | None,
    release: str | None,
    force: bool,
) -> None:
    """Write a commented site.yaml to FILE (default: site.yaml). On a terminal it asks for what no option says."""
    if file.is_dir() or (not force and (file.exists() or file.is_symlink())):
        how = "name another file" if file.is_dir() else "name another file, or replace it with --force"
        raise InvalidInput(f"{file} is there already", resolution=how)
    options = Options(name, hosts, user, network, pool, virtual_address, release)
    answers = ask(options) if sys.stdin.isatty() else complete(options)
    text = template.render(answers)
    try:
        parse_site(text.encode(), file)
    except InvalidSite as error:
        found = "\n".join(str(item.finding) for item in error.found)
        raise InvalidInput("this is no site yet, and nothing was written", details=found, resolution="correct the options that gave these values") from None
    atomic_write(file, text)
    click.echo(f"wrote {file}")


def complete(given: Options) -> Answers:
    """The answers from options alone; InvalidInput names all that are missing."""
    needed: dict[str, object] = {"--name": given.name, "--host": given.hosts, "--network": given.network, "--pool": given.pool}
    if len(given.hosts) > 1:
        needed["--virtual-address"] = given.virtual_address
    if missing := [option for option, value in needed.items() if not value]:
        raise InvalidInput(f"there is no terminal to ask for what is missing: {', '.join(missing)}", resolution="give these options (ckp site init --help)")
    assert given.name and given.network and given.pool
    release = given.release or newest_release()
    return Answers(given.name, given.hosts, given.user or USER_DEFAULT, given.network, given.pool, release, given.virtual_address)


def ask(given: Options) -> Answers:
    """The answers from options, and from a person for what is missing."""
    name = given.name or question("Name of the site", NAME)
    hosts = given.hosts or question("Management hosts, one, three or five (NAME=ADDRESS, with spaces between)", HOSTS)
    user = given.user or question("User to log in as by SSH", USER, USER_DEFAULT)
    taken = {address for _, address in hosts}
    network = given.network or question("Network that the hosts are in", NETWORK, template.suggest_network(hosts[0][1]))
    pool = given.pool or question("Free addresses for load balancers (FIRST-LAST)", POOL, "-".join(map(str, template.suggest_pool(network, taken) or ())))
    virtual = given.virtual_address
    if len(hosts) > 1 and virtual is None:
        virtual = question("Free address for the API of all hosts", ADDRESS, template.suggest_virtual_address(network, pool, taken))
    release = given.release or question("Kubernetes release", RELEASE, newest_release())
    return Answers(name, hosts, user, network, pool, release, virtual)


def question(text: str, kind: Value[T], default: object = None) -> T:
    """Ask until the answer can be read. On standard error, as what is printed is not the answer to the command."""
    answer: T = click.prompt(text, type=kind, default=str(default) if default else None, err=True)
    return answer


@site.command()
@site_file
@output_option
def check(file: Path, output: str) -> None:
    """Look for what is wrong with the site's hosts and network, and change nothing.

    The exit code is 1 if there is an error among the findings.
    """
    # Imported on demand: `ckp site init` needs neither SSH nor the catalog's rooms.
    from ckp.site.check import clusters, of_spec, run

    spec = read_site(file)
    quiet = output in {"json", "yaml"}
    with of_spec.site_to_check(spec) as described:
        known = [*of_spec.files(spec), *clusters.check(spec)]
        found = [*known, *run.check(described, lambda line: None if quiet else echo(f"{line} …", err=True))]
    found.sort(key=lambda finding: finding.severity is Severity.WARNING)  # errors first, each in the order that it has
    if quiet:
        show_data({"items": [{**asdict(finding), "severity": finding.severity.value} for finding in found]}, output)
    elif found:
        click.echo(table(CHECK_COLUMNS, found, wide=output == "wide"))
    else:
        echo("nothing is wrong", err=True)
    if any(finding.severity is Severity.ERROR for finding in found):
        raise SystemExit(1)


@site.command("reference")
@click.option("--write", is_flag=True, help="Write docs/reference/site.md instead of printing.")
def print_reference(write: bool) -> None:
    """Print every key of site.yaml with its meaning, as Markdown."""
    if write:
        click.echo(f"wrote {reference.write()}")
    else:
        click.echo(reference.markdown().rstrip("\n"))
