"""The command group: names with underscore or hyphen, commands in chapters, a hint for a misspelt one."""

from __future__ import annotations

from typing import Any

import click

CHAPTERS = {
    "Run the engine": ("serve", "start", "stop", "status", "doctor", "backup"),
    "Put events in": ("ingest", "generate", "label"),
    "Ask": ("query_similar", "query_event", "classify", "search", "list", "recent", "show", "watch", "shell"),
    "Know more": ("stats", "dead_letters", "info", "models", "fit", "train", "purge", "compact", "export"),
}
ALIASES = {"similar": "query_similar", "query": "query_similar", "event": "query_event", "ls": "list"}


class Flowkin(click.Group):
    """A click group; commands are registered under the names of CHAPTERS."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("-", "_").lower()
        return self.commands.get(ALIASES.get(name, name))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in CHAPTERS.values() for name in names if name in self.commands]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0].replace("-", "_"), self.list_commands(ctx), 2, 0.6)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx)
        name, command, rest = super().resolve_command(ctx, args)
        return command.name if command else name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(len(name) for name in self.list_commands(ctx))
        for chapter, names in CHAPTERS.items():
            known = [(name, self.commands[name]) for name in names if name in self.commands]
            rows = [(name.ljust(widest), command.get_short_help_str(90)) for name, command in known]
            with formatter.section(chapter):
                formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit(0)
        return super().parse_args(ctx, args)


def token(name: str) -> str:
    """Options (and choices) may be typed with underscores too."""
    return name.replace("_", "-")


SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": token,
    "max_content_width": 100,
}
