"""Groups of commands whose modules are imported when one of the commands runs, and not for help or completion."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem


@dataclass(frozen=True)
class Lazy:
    """A command that is not imported yet.

    Args:
        target: `module:attribute` of the click command.
        summary: the first sentence of the command's own help. A test holds them together.
    """

    target: str
    summary: str

    def load(self) -> click.Command:
        """Import it. No command's module needs more than `ckp` without extras: what an extra brings is imported where it is used."""
        module, _, attribute = self.target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, click.Command):
            raise TypeError(f"{self.target} is not a click command")
        return found


class LazyGroup(click.Group):
    """A group with commands of both kinds: `lazy` ones, and those that are added to it as to any group.

    Args:
        lazy: name -> command.
    """

    def __init__(self, name: str | None = None, *, lazy: Mapping[str, Lazy], **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, imported or not."""
        return sorted({*self.commands, *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself; imports it."""
        if cmd_name in self.lazy and cmd_name not in self.commands:
            self.commands[cmd_name] = self.lazy[cmd_name].load()
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; an unknown name is compared with all names, not only with those that are imported."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by their summaries."""
        click.Group(commands=self._summaries()).format_commands(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names and options that begin with `incomplete`."""
        found = [CompletionItem(name, help=item.get_short_help_str()) for name, item in sorted(self._summaries().items()) if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def _summaries(self) -> dict[str, click.Command]:
        """Stand-ins with a name and a summary, for what lists commands and runs none."""
        return {**{name: click.Command(name, help=item.summary) for name, item in self.lazy.items()}, **self.commands}
