"""Shell completion: a script that contains all commands, recipes and options, so it never runs Sfumato."""

import contextlib
import io
import re

from sfumato.cli.main import COMMANDS, parse
from sfumato.errors import UserError

BASH = """\
_sfumato() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "$command" in
{cases}
        esac
    fi
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    fi
    if [ "${{#COMPREPLY[@]}}" -eq 0 ]; then
        COMPREPLY=($(compgen -f -- "$current"))
    fi
}}
complete -o filenames -F _sfumato sfumato
"""
CASE = """\
            {name})
                if [ "$COMP_CWORD" -eq 2 ]; then words="{choices}"; fi
                case "$current" in -*) words="{options}";; esac;;"""


def completion(shell: str = "", *rest: str) -> str:
    """Return a completion script.

    Args:
        shell: bash or zsh.
        rest: must be empty.

    Raises:
        UserError: the shell is unknown, or there are further arguments.
    """
    if shell not in ("bash", "zsh") or rest:
        raise UserError(f"print-completion: unknown shell {shell!r}; give bash or zsh")
    cases = [
        CASE.format(name=name, choices=" ".join(command.choices), options=" ".join(options_of(name)))
        for name, command in COMMANDS.items()
    ]
    script = BASH.format(commands=" ".join(COMMANDS), cases="\n".join(cases))
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"


def options_of(name: str) -> list[str]:
    """Return the options in the help of a command; if it has recipes, those of the first recipe."""
    first = list(COMMANDS[name].choices)[:1]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse([name, *first, "--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", text.getvalue())))
