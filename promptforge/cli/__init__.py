"""The command line. Commands import what they need when they run, so `--help` is fast."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import rich_click as click
from click.exceptions import Exit

from promptforge._version import __version__
from promptforge.cli.later import LaterCommand
from promptforge.errors import PromptForgeError, UserError

#: name -> what `--help` says of it; the module of a command is imported when it is used
BUILT_IN = {
    "search-verbalizer": "Find the words that stand for each label.",
    "search-template": "Find templates: a model writes the words around the label word.",
    "train": "Tune a classifier from few labels, and say honestly how good it is.",
    "adapt": "Train a model on plain text for a while: for another attention, or longer inputs.",
    "compare": "Compare strategies with several seeds: mean, deviation, paired test, time.",
    "runs": "List, show and compare the runs of `promptforge train`.",
    "exit-curve": "Measure what each exit policy costs and saves, and choose a threshold.",
    "evaluate": "Measure accuracy, macro-F1, each label, confusion and calibration on labelled rows.",
    "predict": "Classify the rows of a table.",
    "generate": "Write a text for each row of a table.",
    "predict-many": "Classify the rows of a table, each with the tuned task that it names.",
    "merge": "Write a tuned model as a plain transformers FOLDER: model and tokenizer.",
    "render": "Show what a template makes of a row: parts in colour, tokens, masks, what was cut.",
    "fill": "Show the words the model would write at the mask, with their probabilities.",
    "templates": "List, show and copy the task folders that come with PromptForge and plugins.",
    "import-templates": "Make task folders from SOURCE, a file or folder with the prompts of another toolkit.",
    "export-templates": "Write the patterns of TASK as plain templates.",
    "models": "Models that come inside Python packages: fetched once with pip, then used offline.",
    "plugins": "List the plugins, show what they provide, and examine them.",
    "new-plugin": "Write a plugin that works, for you to change.",
    "install": "Install plugin packages with pip, into the environment PromptForge runs in.",
    "uninstall": "Uninstall plugin packages.",
    "completion": "Print the script that completes commands and options in a shell.",
}
_MODULES = {"install": "plugins", "uninstall": "plugins"}
#: One line on standard error each; the libraries' own bars and hints would drown ours.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
}


def _switch_off(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> None:
    from promptforge.plugins import disable

    for value in values:
        if not value.startswith("no:") or not value[3:]:
            raise click.BadParameter(
                f"{value!r}: write no:NAME to switch the plugin NAME off.", context
            )
    if values:
        disable({value[3:] for value in values})


def _built_in(name: str) -> click.Command | None:
    attribute = name.replace("-", "_")
    target = f"promptforge.cli.{_MODULES.get(name, attribute)}:{attribute}"
    return LaterCommand(name, target, BUILT_IN[name]) if name in BUILT_IN else None


class _Group(click.RichGroup):
    """The built-in commands and those of plugins. A built-in name cannot be taken."""

    _known: tuple[Any, dict[str, click.Command]] | None = None
    _listing = False

    def _from_plugins(self) -> dict[str, click.Command]:
        from promptforge.plugins import manager

        if self._known is None or self._known[0] is not manager():
            found: dict[str, click.Command] = {}
            for plugin, commands in manager().provided("promptforge_commands"):
                for command in commands:
                    if not isinstance(command, click.Command):
                        manager().report(plugin, f"provides {command!r}, which is not a command")
                        continue
                    name = command.name or ""
                    if name in BUILT_IN or name in found:
                        manager().report(
                            plugin, f"provides the command {name!r}, a name that is taken; ignored"
                        )
                    else:
                        found[name] = command
            self._known = (manager(), found)
        return self._known[1]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*BUILT_IN, *sorted(self._from_plugins())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = _built_in(cmd_name) or self._from_plugins().get(cmd_name)
        if isinstance(command, LaterCommand) and not self._listing:
            return command.load()
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="promptforge")
@click.option(
    "-p", "plugin", multiple=True, metavar="no:NAME", is_eager=True, expose_value=False, callback=_switch_off,
    help="Switch the plugin NAME off.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="No progress on standard error.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(quiet: bool, debug: bool) -> None:
    """Prompt and tune language models with few labels."""


def _report_plugins() -> None:
    """Plugins that failed are named on standard error at the end of every command."""
    from promptforge.plugins import known_problems

    for problem in known_problems():
        print(f"Warning: plugin {problem.plugin!r} {problem.message}", file=sys.stderr)


def run(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 failure, 2 user's mistake, 130 Ctrl-C.

    What it sets for itself in the process is as before when it returns: a caller may go on.
    """
    from promptforge.plugins import switches_restored

    with _quiet_libraries(), switches_restored():
        code = _run(args)
        _report_plugins()
    return code


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    # transformers takes its level from the environment when it is imported, perhaps in here.
    log = logging.getLogger("transformers")
    added, level = _QUIET.keys() - os.environ.keys(), log.level
    os.environ.update({name: _QUIET[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        log.setLevel(level)


def _run(args: Sequence[str] | None) -> int:
    arguments = _first(list(sys.argv[1:] if args is None else args))
    debug = "--debug" in arguments
    try:
        result = cli.main(args=arguments, prog_name="promptforge", standalone_mode=False)
        sys.stdout.flush()  # A full disk or a closed pipe shows itself here, not after the end.
        return result if isinstance(result, int) else 0
    except Exit as leave:
        return leave.exit_code
    except SystemExit as leave:  # rich-click's and completion's way to end
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except (KeyboardInterrupt, click.Abort):
        print("Interrupted.", file=sys.stderr)
        return 130
    except click.ClickException as mistake:
        from promptforge.cli.config import blamed

        blamed(mistake).show()
        return 2
    except BrokenPipeError:
        return 1  # The reader of our output is gone (`| head`): nothing more can be said there.
    except Exception as error:
        if debug:
            raise
        return _say(error)


def _drop_output() -> None:
    """What standard output did not take must not fail once more at the interpreter's end: code 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _first(arguments: list[str]) -> list[str]:
    """With the group's own flags at the beginning: they come as an afterthought, after the command."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    moved = [a for a in arguments[:end] if a in ("--debug", "-q", "--quiet")]
    return [*moved, *(a for a in arguments[:end] if a not in moved), *arguments[end:]]


def _say(error: Exception) -> int:
    if isinstance(error, PromptForgeError):
        message, code = str(error), error.exit_code
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        message, code = (
            f"No space left on the disk ({error.filename or 'writing'}). Free some and run again.",
            1,
        )
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = str(error.filename)
        message, code = f"There is no file or folder {name[:60]!r}...: the name is too long.", 2
    elif isinstance(error, MemoryError):
        message, code = "Out of memory: lower --batch-tokens or choose a smaller model.", 1
    else:
        message = f"{type(error).__name__}: {error}\nThis is a mistake in PromptForge or a plugin; --debug shows where."
        code = 1
    print(f"Error: {message}", file=sys.stderr)
    return code


def main() -> None:
    """The entry point `promptforge`."""
    code = run()
    _drop_output()
    sys.exit(code)


__all__ = ["UserError", "cli", "main", "run"]
