#!/usr/bin/env python3
"""Write what completes the command lines of dtcpc, dtcps and dtcpauth, for a shell.

All it knows is what the programs' own parsers have.  The port's Makefile runs it; by hand it is

    python3 etc/completion.py bash dtcpc >~/.local/share/bash-completion/completions/dtcpc
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path[:0] = [_ROOT, os.path.join(_ROOT, "lib")]

# Which module has the parser.
PROGRAMS = {"dtcpc": "dtcp.client.options", "dtcps": "dtcps", "dtcpauth": "dtcpauth"}

# What a value is, if more is known of it than its name.
_KINDS = {"file": "file", "script": "file", "if": "interface", "server": "host"}


class Word(NamedTuple):
    """An option, or an argument, which has no names."""

    names: tuple[str, ...]
    help: str
    value: str  # its name, if there is one
    choices: tuple[str, ...]  # all that it may be

    @property
    def kind(self) -> str:
        return _KINDS.get(self.value, "")


class Command(NamedTuple):
    """A command line: that of a program, or of one of its commands."""

    name: str  # empty: the program itself
    options: list[Word]
    arguments: list[Word]


def commands(parser: argparse.ArgumentParser, name: str = "") -> list[Command]:
    """What a parser takes, and each of its commands."""
    here, below = Command(name, [], []), []
    for action in parser._actions:
        value = str(action.metavar or action.dest) if action.nargs != 0 else ""
        choices = tuple(map(str, action.choices or ()))
        word = Word(tuple(action.option_strings), action.help or "", value, choices)
        (here.options if word.names else here.arguments).append(word)
        if isinstance(action, argparse._SubParsersAction):
            for each, its in action.choices.items():
                below += commands(its, each)
    return [here, *below]


def _followed(command: Command) -> list[tuple[Word, Word]]:
    """An argument that is one of a few words, and what comes behind it."""
    pairs = zip(command.arguments, command.arguments[1:], strict=False)
    return [(one, other) for one, other in pairs if one.choices]


def _head(shell: str, program: str) -> str:
    return f"# Completion of {program}(8) for {shell}, made by etc/completion.py.\n"


# --- bash -------------------------------------------------------------------------------------

_BASH = {
    "file": "compopt -o default",
    "interface": 'COMPREPLY=($(compgen -W "$(ifconfig -l 2>/dev/null)" -- "$this"))',
    "host": 'COMPREPLY=($(compgen -A hostname -- "$this"))',
}


def bash(program: str, lines: list[Command]) -> str:
    behind: dict[str, list[str]] = {}  # what is done, and the words behind which
    at = ""
    for command in lines:
        followed = [(word, option) for option in command.options for word in option.names]
        names = " ".join(word for word, _ in followed)
        followed += [(word, other) for one, other in _followed(command) for word in one.choices]
        for word, what in followed:
            if what.value:
                behind.setdefault(_in_bash(what), []).append(f'"{command.name} {word}"')
        at += f'\t"{command.name} -"*)\n\t\t{_of_words(names)}\n\t\t;;\n'
        for argument in command.arguments[:1]:
            at += f'\t"{command.name} "*)\n\t\t{_in_bash(argument)}\n\t\t;;\n'
    before = "".join(
        f"\t{'|'.join(words)})\n\t\t{what}\n\t\treturn\n\t\t;;\n" for what, words in behind.items()
    )
    return f"""{_head("bash", program)}
_{program}()
{{
	local before=${{COMP_WORDS[COMP_CWORD-1]}} command="" this=${{COMP_WORDS[COMP_CWORD]}}

{_BASH_COMMAND.format("|".join(each.name for each in lines[1:])) if lines[1:] else ""}\
	COMPREPLY=()
	case "$command $before" in
{before}	esac
	case "$command $this" in
{at}	esac
}}

complete -F _{program} {program}
"""


# Finds the command among the words so far.
_BASH_COMMAND = """\
	local word
	for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
		case $word in
		{})
			command=$word
			break
			;;
		esac
	done
"""


def _in_bash(word: Word) -> str:
    return _of_words(" ".join(word.choices)) if word.choices else _BASH.get(word.kind, ":")


def _of_words(words: str) -> str:
    return f'COMPREPLY=($(compgen -W "{words}" -- "$this"))'


# --- zsh --------------------------------------------------------------------------------------

_ZSH = {"file": "_files", "interface": "_net_interfaces", "host": "_hosts"}


def zsh(program: str, lines: list[Command]) -> str:
    top, *below = lines
    text = f"#compdef {program}\n{_head('zsh', program)}\n"
    if not below:
        return text + "\n".join(_arguments("_arguments -s -S", top)) + "\n"
    # What a command takes is completed as if its name were that of a program.
    rest = [*_arguments("_arguments -C -s -S", top)[:-1], f"\t{_zsh_argument(top.arguments[0])} \\"]
    text += "local curcontext=$curcontext context state line\ntypeset -A opt_args\n\n"
    text += "\n".join([*rest, "\t'*::argument:->arguments'"]) + "\n"
    text += "\n[[ $state == arguments ]] || return\ncase $words[1] in\n"
    for command in below:
        inner = "\n\t".join(_arguments("_arguments -s -S", command))
        text += f"{command.name})\n\t{inner}\n\t;;\n"
    return text + "esac\n"


def _arguments(call: str, command: Command) -> list[str]:
    words = [*map(_zsh_option, command.options), *map(_zsh_argument, command.arguments)]
    return [f"{call} \\", *(f"\t{word} \\" for word in words[:-1]), f"\t{words[-1]}"]


def _zsh_option(option: Word) -> str:
    spec = f"[{_escaped(option.help, '[]')}]" + _zsh_value(option) * bool(option.value)
    ends = {name: ("=" if name[1] == "-" else "+") * bool(option.value) for name in option.names}
    if len(ends) == 1:
        return _quoted("".join(map("".join, ends.items())) + spec)
    names = ",".join(map("".join, ends.items()))
    return f"'({' '.join(ends)})'{{{names}}}{_quoted(spec)}"


def _zsh_argument(argument: Word) -> str:
    return _quoted(_zsh_value(argument))


def _zsh_value(word: Word) -> str:
    what = f"({' '.join(word.choices)})" if word.choices else _ZSH.get(word.kind, " ")
    return f":{_escaped(word.value, ':')}:{what}"


def _escaped(text: str, letters: str) -> str:
    return "".join(f"\\{letter}" if letter in letters else letter for letter in text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish -------------------------------------------------------------------------------------

_FISH = {
    "file": "-F",
    "interface": "-a '(__fish_print_interfaces)'",
    "host": "-a '(__fish_print_hostnames)'",
}


def fish(program: str, lines: list[Command]) -> str:
    text = f"{_head('fish', program)}\ncomplete -c {program} -f\n"
    others = " ".join(command.name for command in lines[1:])
    for command in lines:
        if command.name:
            seen = f"__fish_seen_subcommand_from {command.name}"
        else:
            seen = f"not __fish_seen_subcommand_from {others}" if others else ""
        start = f"complete -c {program}" + f" -n '{seen}'" * bool(seen)
        for option in command.options:
            text += start
            for name in option.names:
                text += f" -l {name[2:]}" if name[1] == "-" else f" -s {name[1:]}"
            if option.value:
                text += f" {'-r' if option.kind == 'file' else '-x'} {_in_fish(option)}".rstrip()
            text += f" -d '{_escaped(option.help, chr(39) + chr(92))}'\n"
        for argument in command.arguments[:1]:
            if what := _in_fish(argument):
                text += f"{start} {what}\n"
        for one, other in _followed(command):
            seen = f"{seen}; and __fish_seen_subcommand_from {' '.join(one.choices)}"
            text += f"complete -c {program} -n '{seen}' {_in_fish(other)}\n"
    return text


def _in_fish(word: Word) -> str:
    return f"-a '{' '.join(word.choices)}'" if word.choices else _FISH.get(word.kind, "")


# --- tcsh -------------------------------------------------------------------------------------


def tcsh(program: str, lines: list[Command]) -> str:
    """One `complete` line, which cannot tell one command from another."""
    options = {name: each for line in lines for each in line.options for name in each.names}
    rules = [f"c@-@({' '.join(name[1:] for name in options)})@"]
    rules += [f"n@{name}@{_in_tcsh(each)}@" for name, each in options.items() if each.value]
    for line in lines:
        for one, other in _followed(line):
            rules.append(f"n@{{{','.join(one.choices)}}}@{_in_tcsh(other)}@")
        for argument in line.arguments[:1]:
            where = f"n@{line.name}" if line.name else "p@1" if argument.choices else "p@*"
            rules.append(f"{where}@{_in_tcsh(argument)}@")
    body = "".join(f" \\\n\t'{rule}'" for rule in rules)
    return f"{_head('tcsh', program)}complete {program}{body}\n"


def _in_tcsh(word: Word) -> str:
    if word.choices:
        return f"({' '.join(word.choices)})"
    return {"file": "f", "interface": "`ifconfig -l`"}.get(word.kind, f"x:{word.value}")


SHELLS: dict[str, Callable[[str, list[Command]], str]] = {
    "bash": bash,
    "fish": fish,
    "tcsh": tcsh,
    "zsh": zsh,
}


def main() -> None:
    p = argparse.ArgumentParser(description="Write what completes a command line.")
    p.add_argument("shell", choices=SHELLS)
    p.add_argument("programs", metavar="program", nargs="+", choices=PROGRAMS)
    options = p.parse_args()
    for program in options.programs:
        parser = importlib.import_module(PROGRAMS[program]).parser()
        sys.stdout.write(SHELLS[options.shell](program, commands(parser)))


if __name__ == "__main__":
    main()
