"""Completion scripts of three shells, each made from the same list of commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """`takes`: "" for a switch, else what its value is: "choice", "number", or "file" for text, which may be one."""

    name: str  # with its dashes
    help: str
    takes: str = ""
    choices: tuple[str, ...] = ()
    is_list: bool = False
    short: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, self.short) if self.short else (self.name,)

    @property
    def summary(self) -> str:
        """The first sentence of the help."""
        return self.help.split(". ")[0].rstrip(".")


@dataclass(frozen=True)
class Command:
    """`name` has one word or two; `words`: what the command takes beside its options; `takes_file`: or a file."""

    name: str
    help: str
    options: tuple[Option, ...]
    words: tuple[str, ...] = ()
    takes_file: bool = False


def _groups(commands: Sequence[Command]) -> dict[str, dict[str, str]]:
    """First word of commands of two -> their second words -> their help."""
    groups: dict[str, dict[str, str]] = {}
    for command in commands:
        group, _, member = command.name.partition(" ")
        if member:
            groups.setdefault(group, {})[member] = command.help
    return groups


def _first_words(commands: Sequence[Command]) -> dict[str, str]:
    """What may follow `octavo` -> its help."""
    groups = {group: f"Commands: {', '.join(members)}." for group, members in _groups(commands).items()}
    return {c.name.split()[0]: groups.get(c.name.split()[0], c.help) for c in commands}


# ---------------------------------------------------------------- bash
_BASH = """\
# Completion of octavo for bash, made by `octavo completion bash`. It works without bash-completion, from bash 3.2 on.
_octavo() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} first=2
    local options= words= values= files=
    COMPREPLY=()
    # Readline makes three words of --flag=value.
    if [[ $cur == "=" ]]; then
        cur=
    elif [[ $before == "=" ]]; then
        before=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{firsts} --help --version" -- "$cur"))
        return
    fi
    case $command in
{groups}
    esac
    if ((COMP_CWORD < first)); then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
        return
    fi
    case "$command $before" in
{values}
    esac
    if [[ -n $values ]]; then
        COMPREPLY=($(compgen -W "$values" -- "$cur"))
        return
    fi
    case $command in
{options}
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    elif [[ -n $cur || -z $files ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    fi
}}
# Where nothing is found, names of files.
complete -o default -F _octavo octavo
"""


def bash(commands: Sequence[Command]) -> str:
    groups = [
        f'        {group}) first=3 words="{" ".join(members)}" command="{group} ${{COMP_WORDS[2]}}" ;;'
        for group, members in _groups(commands).items()
    ]
    values = [
        f'        "{command.name} {name}") values="{" ".join(option.choices)}" ;;'
        for command in commands
        for option in command.options
        if option.choices
        for name in option.names
    ]
    options = [
        f'        "{command.name}") files={"1" if command.takes_file else ""} words="{" ".join(command.words)}"\n'
        f'            options="{" ".join(option.name for option in command.options)}" ;;'
        for command in commands
    ]
    return _BASH.format(
        firsts=" ".join(_first_words(commands)),
        groups="\n".join(groups),
        values="\n".join(values),
        options="\n".join(options),
    )


# ---------------------------------------------------------------- zsh
_ZSH = """\
#compdef octavo
# Completion of octavo for zsh, made by `octavo completion zsh`.
_octavo() {{
    local -a found
    if ((CURRENT == 2)); then
        found=({firsts})
        _describe command found
        return
    fi
    shift words
    ((CURRENT -= 1))
    case $words[1] in
{cases}
    esac
}}
if [[ $funcstack[1] == _octavo ]]; then
    _octavo "$@"
else
    compdef _octavo octavo
fi
"""


def zsh(commands: Sequence[Command]) -> str:
    cases = [_zsh_case(command, "        ") for command in commands if " " not in command.name]
    for group, members in _groups(commands).items():
        described = " ".join(_quoted(f"{name}:{text}") for name, text in members.items())
        inner = [_zsh_case(command, "                ") for command in commands if command.name.startswith(group + " ")]
        lines = [
            f"        {group})",
            f"            if ((CURRENT == 2)); then found=({described}); _describe command found; return; fi",
            "            shift words",
            "            ((CURRENT -= 1))",
            "            case $words[1] in",
            *inner,
            "            esac",
            "            ;;",
        ]
        cases.append("\n".join(lines))
    firsts = " ".join(_quoted(f"{name}:{text}") for name, text in _first_words(commands).items())
    return _ZSH.format(firsts=firsts, cases="\n".join(cases))


def _zsh_case(command: Command, indent: str) -> str:
    specs = [spec for option in command.options for spec in _zsh_specs(option)]
    if command.takes_file:
        alternatives = f"'models:model:({' '.join(command.words)})' 'files:file:_files'"
        # The space keeps _arguments from giving _alternative words of its own.
        specs.append(_quoted(f"1:model: _alternative {alternatives}"))
    elif command.words:
        specs.append(_quoted(f"1:word:({' '.join(command.words)})"))
    joined = f" \\\n{indent}        ".join(specs)
    return f"{indent}{command.name.split()[-1]})\n{indent}    _arguments \\\n{indent}        {joined}\n{indent}    ;;"


def _zsh_specs(option: Option) -> list[str]:
    text = option.summary.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    many = "*" if option.is_list else ""
    action = {"choice": f":value:({' '.join(option.choices)})", "number": ":number: ", "file": ":value:_files", "": ""}
    value = action[option.takes]
    return [
        _quoted(f"{many}{name}{'=' if value and name.startswith('--') else ''}[{text}]{value}") for name in option.names
    ]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---------------------------------------------------------------- fish
_FISH = """\
# Completion of octavo for fish, made by `octavo completion fish`.
function __octavo_is --description 'Whether these are the words between octavo and the one being written'
    set -l given (commandline -opc)
    set -e given[1]
    set -l count (count $argv)
    test (count $given) -ge $count; or return 1
    test $count -eq 0; and return 0
    test "$given[1..$count]" = "$argv"
end
function __octavo_is_just
    test (math (count (commandline -opc)) - 1) -eq (count $argv); and __octavo_is $argv
end
"""


def fish(commands: Sequence[Command]) -> str:
    lines = ["complete -c octavo -f -n __octavo_is_just -l help -d 'describe octavo'"]
    lines.append("complete -c octavo -f -n __octavo_is_just -l version -d 'print the version'")
    for name, text in _first_words(commands).items():
        lines.append(f"complete -c octavo -f -n __octavo_is_just -a {name} -d {_fish_quoted(text)}")
    for group, members in _groups(commands).items():
        for name, text in members.items():
            lines.append(f"complete -c octavo -f -n '__octavo_is_just {group}' -a {name} -d {_fish_quoted(text)}")
    for command in commands:
        condition = f"complete -c octavo -n '__octavo_is {command.name}'"
        if command.words:
            lines.append(f"{condition}{'' if command.takes_file else ' -f'} -a '{' '.join(command.words)}'")
        elif not command.takes_file:
            lines.append(f"{condition} -f")
        lines += [_fish_option(condition, option) for option in command.options]
    return _FISH + "\n".join(lines) + "\n"


def _fish_option(condition: str, option: Option) -> str:
    value = {"choice": f" -x -a '{' '.join(option.choices)}'", "number": " -x", "file": " -r -F", "": ""}[option.takes]
    short = f" -s {option.short[1:]}" if option.short else ""
    return f"{condition} -l {option.name[2:]}{short}{value} -d {_fish_quoted(option.summary)}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
