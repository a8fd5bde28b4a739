"""``--help`` as plain text with the options in groups; rich's help would cost a third of a second."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

EXIT_CODES = (
    "Exit codes: 0 done; 1 the gate failed; 2 wrong usage or configuration; 3 the scan could not be "
    "completed."
)
_OTHER = "Other"
_COLUMN = 22


class GroupedCommand(TyperCommand):
    """A command whose help lists the options under their ``rich_help_panel``, in the order of the groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then one section a group.

        Args:
            ctx: the parser's context; its class is typer's or click's own, by typer's version.
            formatter: what is written to.
        """
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = _record(parameter, ctx)
            if record is not None:
                groups.setdefault(_group(parameter), []).append(record)
        for title in sorted(groups, key=lambda title: title == _OTHER):
            with formatter.section(title):
                formatter.write_dl(groups[title], col_max=_COLUMN)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line, the arguments by their own metavars."""
        arguments = [p.metavar for p in self.get_params(ctx) if _is_argument(p)]
        return [str(self.options_metavar), *(str(metavar) for metavar in arguments)]


def _record(parameter: Any, ctx: Any) -> tuple[str, str] | None:
    if _is_argument(parameter):
        return str(parameter.metavar), str(parameter.help)
    found: tuple[str, str] | None = parameter.get_help_record(ctx)
    return found


def _group(parameter: Any) -> str:
    default = "Arguments" if _is_argument(parameter) else _OTHER
    return getattr(parameter, "rich_help_panel", None) or default


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")
