"""Writes man/*.1, a manual page for the command and for each verb, from the same source as their help.

Run by ``make man``; a test holds that every option is there and that groff takes them.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click

from shadowtrace.__main__ import VERBS, cli

FOLDER = Path(__file__).parent.parent / "man"

_EXITS = (
    ("0", "done"),
    ("1", "the fault is ours, the machine's or the trace's: a check does not hold, a file cannot be written"),
    ("2", "wrong use: a sentence says what, a hint what to do"),
    ("3", "a limit that was set was missed"),
    ("130", "interrupted; what was being recorded is sealed"),
)


def _escape(text: str) -> str:
    """Text as roff takes it: no line begins with a control character, hyphens are the ones that can be pasted."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def _plain(text: str) -> str:
    """Running text: backquoted words in bold."""
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", _escape(text))


def _body(help_text: str) -> list[str]:
    """The paragraphs of a help text; those under a ``\\b`` keep their lines, and are examples where they say so."""
    out: list[str] = []
    for paragraph in re.sub(r"^ {4}", "", help_text, flags=re.MULTILINE).strip().split("\n\n"):
        if not paragraph.startswith("\b"):
            out += [".PP", _plain(" ".join(paragraph.split()))]
            continue
        lines = paragraph.strip("\b\n").splitlines()
        if lines and lines[0].strip() == "Example:":
            out.append(".SH EXAMPLES")
            lines = lines[1:]
        out += [".PP", ".nf", *(_escape(line.strip()) for line in lines), ".fi"]
    return out


def _options(command: click.Command, context: click.Context) -> list[str]:
    out = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            out += [".TP", f".B {_escape(record[0])}", _plain(record[1])]
    return out


def page(verb: str | None) -> str:
    """The manual page of a verb, or of the command itself."""
    root = click.Context(cli, info_name="shadowtrace")
    command: click.Command = cli
    context, name, about = root, "shadowtrace", "record a guest's paging and replay it through a shadow page cache"
    if verb is not None:
        module = importlib.import_module(f"shadowtrace.{verb if verb != 'import' else 'import_'}")
        command = module.command
        context, name = click.Context(command, info_name=verb, parent=root), f"shadowtrace-{verb}"
        about = VERBS[verb][0].lower() + VERBS[verb][1:].rstrip(".")
    usage = " ".join(command.collect_usage_pieces(context))
    body = _body(command.help or "")
    examples = body.index(".SH EXAMPLES") if ".SH EXAMPLES" in body else len(body)
    parts = [
        f'.TH {_escape(name.upper())} 1 "" shadowtrace "User Commands"',
        ".SH NAME",
        f"{_escape(name)} \\- {_escape(about)}",
        ".SH SYNOPSIS",
        f".B {_escape(context.command_path)}",
        _escape(usage),
        ".SH DESCRIPTION",
        *body[:examples],
    ]
    if verb is None:
        parts.append(".SH VERBS")
        for other, line in VERBS.items():
            parts += [".TP", f".BR shadowtrace\\-{other} (1)", _plain(line)]
    parts += [".SH OPTIONS", *_options(command, context), *body[examples:], ".SH EXIT STATUS"]
    for code, meaning in _EXITS:
        parts += [".TP", f".B {code}", _plain(meaning)]
    others = [other for other in VERBS if other != verb]
    parts += [".SH SEE ALSO", ",\n".join([".BR shadowtrace (1)"] * bool(verb) + [f".BR shadowtrace\\-{other} (1)" for other in others])]
    return "\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Every manual page by its file's name."""
    return {"shadowtrace.1": page(None)} | {f"shadowtrace-{verb}.1": page(verb) for verb in VERBS}


def main() -> None:
    """Write every page, and remove those of verbs that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.1"):
        old.unlink()
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
