"""docs/reference/commands.md: the words at its beginning, then every command with its options, as the command line has
them. `python tests/helpers/commands_page.py` writes it again."""

import inspect
from typing import Any

import typer
from places import REFERENCE

from lynx_moe.cli import app

PAGE = REFERENCE / "commands.md"
MARK = "<!-- what follows is written by tests/helpers/commands_page.py -->\n"


def page() -> str:
    """The page as it must be; its first part is what the file says now."""
    words = PAGE.read_text().partition(MARK)[0]
    return words + MARK + "".join(section("lynx-moe", command) for command in commands(typer.main.get_command(app)))


def commands(group: Any) -> list[Any]:
    return [group.commands[name] for name in group.list_commands(None)]


def section(parent: str, command: Any) -> str:
    if hasattr(command, "commands"):
        return "".join(section(f"{parent} {command.name}", inner) for inner in commands(command))
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    called = [parent, command.name, *(shown(argument) for argument in arguments)]
    lines = [f"\n## `{parent} {command.name}`", "", " ".join(inspect.cleandoc(command.help).split()), ""]
    lines += [f"    {' '.join(called)}{' [OPTIONS]' if options else ''}", ""]
    rows = [(f"`{shown(p)}`", "" if p.required else default(p), p.help or "") for p in arguments]
    rows += [(", ".join(f"`{name}`" for name in p.opts), default(p), p.help or "") for p in options]
    if rows:
        lines += ["| | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| {name} | {value} | {about} |" for name, value, about in rows]
    return "\n".join(lines).rstrip() + "\n"


def shown(argument: Any) -> str:
    name = argument.name.upper()
    return f"{name}..." if argument.nargs == -1 else name


def default(parameter: Any) -> str:
    value = parameter.default
    return "" if value is None or value == "" else "off" if value is False else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page())
