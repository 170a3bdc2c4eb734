# SPDX-License-Identifier: Apache-2.0
"""From `sys.argv` to a `Config`, without importing TensorFlow.

Settings come from four places, each overriding the one before: the defaults
of `Config` (the paper), a recipe (`--flagfile`, or the one that fits the data),
the settings that the workdir was made with, the flags on the command line. A
flag that contradicts the workdir is refused, for its results would be neither
the old run's nor the new one's.
"""

import dataclasses
import os
import pathlib

from absl import flags

from noisy_student import files
from noisy_student import settings
from noisy_student.config import Config
from noisy_student.contradictions import check_same
from noisy_student.errors import UserError
from noisy_student.knobs import base_type
from noisy_student.knobs import is_optional
from noisy_student.knobs import is_text
from noisy_student.knobs import respelled
from noisy_student.knobs import spell

RUN_FLAGS = "run.flags"
RECIPES = pathlib.Path(__file__).resolve().parent.parent / "flags"
# Any of these says which data to use; without one it is the digits.
DATA_FLAGS = (
    "dataset",
    "labeled_dir",
    "labeled_tfrecords",
    "eval_dir",
    "eval_tfrecords",
)
# The recipe that is made for a data set.
RECIPE_OF = {
    "digits": "digits",
    "imagenet2012": "imagenet_b0",
    "svhn_cropped": "svhn_b0",
}
# A setting, and another one that overrides it.
SAME_THING = (("epochs", "train_steps"), ("lr_decay_epochs", "final_base_lr"))
# What one command does, not how the run is set up: never recorded.
OF_ONE_COMMAND = (
    "mode",
    "iteration",
    "force",
    "input",
    "output",
    "export_formats",
)
# What can be done with weights alone.
WEIGHT_MODES = ("evaluate", "predict", "embed", "export")
HELP_FLAGS = ("-h", "-help", "--help", "--helpshort", "--helpfull")


class HelpRequested(Exception):
    """The user asked for help; the text is the argument."""


def parse(argv, recipes=RECIPES, say=lambda text: None):
    """Read a command line.

    Args:
        argv: As `sys.argv`: the program, then the flags.
        recipes: Folder of the recipes that are taken unasked.
        say: Function that is told, in a line, where the settings come from.

    Returns:
        A `Config`.

    Raises:
        HelpRequested: With the text to print.
        UserError: For an unknown flag, a stray argument, a value out of range
            or a flag that contradicts the workdir.
    """
    arguments = list(argv[1:])
    if any(argument in HELP_FLAGS for argument in arguments):
        raise HelpRequested(help_text())
    flagfiles, typed = _flagfiles_first(arguments)
    given = _read([*flagfiles, *typed])
    _let_the_last_count(given, typed, flagfiles)
    recipe = None
    if not (flagfiles or _uses_weights(given)):
        recipe = recipes / f"{_recipe(given)}.flags"
    base = read_flagfile(recipe) if recipe else {}

    workdir = given.get("workdir") or base.get("workdir") or Config.workdir
    workdir = pathlib.Path(files.tidy(workdir))
    _check_folder(workdir)
    recorded = recorded_settings(workdir)
    if recorded is not None:
        recipe, base = workdir / RUN_FLAGS, recorded
    elif recipe and recipe.stem == "digits":
        _check_classes_known(given)
    config = Config(**{**base, **given})
    if recorded is not None:
        check_same(workdir, Config(**recorded), config)
    say(_origin(recipe, flagfiles, typed))
    return config


def _flagfiles_first(arguments):
    """Arguments that name flagfiles, and the others, which override them."""
    flagfiles, typed, left = [], [], list(arguments)
    while left:
        argument = left.pop(0)
        if argument.lstrip("-").split("=")[0] != "flagfile":
            typed.append(argument)
            continue
        flagfiles.append(argument)
        if "=" not in argument and left:
            flagfiles.append(left.pop(0))
    return flagfiles, typed


def _let_the_last_count(given, typed, flagfiles):
    """Of two settings of the same thing, drop the one set before the other.

    Raises:
        UserError: If both stand on the command line, in whatever order.
    """
    on_command_line = _read(typed)
    flat = flags.FlagValues().read_flags_from_files([*flagfiles, *typed])
    names = [argument.lstrip("-").split("=")[0] for argument in flat]
    for pair in SAME_THING:
        setting, override = pair
        if setting in on_command_line and on_command_line.get(override):
            raise UserError(
                f"--{setting} and --{override} set the same thing: give one "
                "of them"
            )
        found = [name for name in names if name in pair]
        if found and found[-1] == setting:
            given[override] = None


def _recipe(given):
    """Name of the recipe for the data that a command line names."""
    dataset = given.get("dataset")
    if dataset in RECIPE_OF:
        return RECIPE_OF[dataset]
    named = any(given.get(name) for name in _data_flags(given))
    return "own_images" if named else "digits"


def _origin(recipe, flagfiles, typed):
    """Where the settings come from, in a line."""
    paths = [str(recipe)] if recipe else []
    paths += [
        argument.partition("=")[2] or argument
        for argument in flagfiles
        if argument not in ("-flagfile", "--flagfile")
    ]
    origins = [files.short(files.absolute(path)) for path in paths]
    origins += [] if paths else ["the paper's"]
    origins += ["the command line"] if typed else []
    *first, last = origins
    text = f"{', '.join(first)} and {last}" if first else last
    return f"Settings: {text}".encode(errors="backslashreplace").decode()


def recorded_settings(workdir):
    """What the `run.flags` of a workdir sets.

    Args:
        workdir: Its path.

    Returns:
        Dict as of `read_flagfile`, or None before there is one. A path that
        has gone is looked for where it lay from the workdir: both may have
        been moved together.
    """
    path = workdir / RUN_FLAGS
    if not path.exists():
        return None
    recorded = read_flagfile(path)
    # Those below the current folder were made relative to it.
    before = files.absolute(recorded.get("workdir") or workdir)

    def follow(old):
        place = os.path.relpath(files.absolute(old), before)
        moved = os.path.join(workdir, place)
        moves = not files.found(old) and files.found(moved)
        return files.tidy(moved) if moves else old

    for field in dataclasses.fields(Config):
        if field.name in recorded and field.name != "workdir":
            recorded[field.name] = respelled(
                field, recorded[field.name], follow
            )
    return recorded


def _data_flags(given):
    """The flags that say which data to use."""
    if given.get("mode") != "preview":
        return DATA_FLAGS
    # Which needs no labels.
    return (*DATA_FLAGS, "unlabeled_dir", "unlabeled_tfrecords")


def _check_folder(workdir):
    """Refuse a workdir that is a file, or below one."""
    existing = next(p for p in (workdir, *workdir.parents) if p.exists())
    if not existing.is_dir():
        raise UserError(
            f"--workdir={workdir}, but {existing} is a file: give a folder, "
            "which need not exist yet"
        )


def _check_classes_known(given):
    """Refuse unlabeled images of one's own beside the labels of the digits."""
    for name in ("unlabeled_dir", "unlabeled_tfrecords"):
        if given.get(name):
            raise UserError(
                f"--{name} without labeled images: give --labeled_dir=DIR too, "
                "a folder with one folder per class"
            )


def _uses_weights(given):
    """Whether weights are to be used as they are, not a recipe."""
    return given.get("mode") in WEIGHT_MODES and given.get("init_from")


def read_flagfile(path):
    """Read a file of flags.

    Args:
        path: A recipe, or the `run.flags` of a workdir.

    Returns:
        Dict of the `Config` fields that it sets.
    """
    try:
        return _read([f"--flagfile={path}"])
    except UserError as error:
        raise UserError(f"in {path}: {error}") from error


def write_run_flags(config, path):
    """Render the settings of a run as a file that `--flagfile` reads back.

    Args:
        config: A `Config`.
        path: The file to be, for the comment on top.

    Returns:
        The text.
    """
    lines = [f"# Read it back with: python main.py --flagfile={path}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in OF_ONE_COMMAND:
            continue
        if value is None and field.default is None and is_text(field):
            continue
        # An empty text where the default is none: no students, no noise.
        spelled = spell(field, value)
        if field.metadata["kind"]:
            # True from any folder. Spaces at the end would not be read back.
            spelled = respelled(field, spelled, files.absolute)
            spelled += os.sep if spelled != spelled.rstrip() else ""
        lines.append(f"--{field.name}={spelled}")
    return "\n".join(lines) + "\n"


def help_text():
    """What `--help` prints: every mode and every flag with its default."""
    lines = [
        "Noisy Student Training in Keras 3.",
        "",
        "  python main.py                    the whole loop on handwritten"
        " digits, in minutes",
        "  python main.py --labeled_dir=DIR --unlabeled_dir=DIR"
        " --eval_dir=DIR   your images",
        "  python main.py --flagfile=flags/NAME.flags [--flag=value ...]"
        "      a recipe",
        "  python main.py --mode=MODE --workdir=DIR    one phase of a run, or"
        " what its model can do",
        "",
        "Modes (--mode=NAME):",
    ]
    lines += [f"  {name:<10}{text}" for name, text in settings.MODES.items()]
    lines += [
        "",
        "Flags, with the defaults that a recipe starts from: those of the"
        " paper on ImageNet.",
        "--flip=false can be written --noflip; auto and empty mean what the"
        " text says.",
        "  --flagfile=PATH",
        "      Read flags from a file; put it first.",
    ]
    # Config takes the fields of its last base first.
    for section in reversed(Config.__bases__):
        lines += ["", section.__doc__.removesuffix(".") + ":"]
        for field in dataclasses.fields(section):
            lines += _help_of(field)
    return "\n".join(lines)


def _help_of(field):
    """The lines of one flag."""
    choices, text = field.metadata["choices"], field.metadata["help"]
    shown = "|".join(choices) or spell(field, field.default)
    if choices:
        text += f" Default: {spell(field, field.default)}."
    return [f"  --{field.name}={shown}", f"      {text}"]


def _read(arguments):
    """Parse arguments alone: only what they set, as `Config` values."""
    # A FlagValues of its own: nothing global, any number of times.
    values = flags.FlagValues()
    flags.DEFINE_string("flagfile", "", "", flag_values=values)
    for field in dataclasses.fields(Config):
        _define(field, values)
    try:
        stray = values(["main.py", *arguments])[1:]
    except flags.CantOpenFlagFileError as error:
        reason = str(error).partition("] ")[2]
        raise UserError(
            f"cannot open the flagfile ({reason}): recipes are "
            f"{os.path.relpath(RECIPES)}/*.flags"
        ) from error
    except flags.Error as error:
        message = " ".join(str(error).split()).removeprefix("ERROR:: ")
        message = message[0].lower() + message[1:].rstrip(".? ")
        if len(message) > 300:
            message = message[:299] + "…"
        raise UserError(f"{message}; see python main.py --help") from error
    except OSError as error:
        raise UserError(f"cannot open the flagfile: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            "the flagfile is no text in UTF-8: write it again, or take it from "
            "where it was right"
        ) from error
    if stray:
        raise UserError(
            f"unexpected argument {stray[0][:99]!r}: settings are given as "
            "--flag=value, see python main.py --help"
        )
    return {
        field.name: respelled(field, values[field.name].value, files.short)
        or None
        if is_text(field)
        else values[field.name].value
        for field in dataclasses.fields(Config)
        if values[field.name].present
    }


def _define(field, values):
    kind = base_type(field)
    options = {"flag_values": values, "module_name": "noisy_student"}
    if field.metadata["choices"]:
        flags.DEFINE_enum(
            field.name,
            field.default,
            field.metadata["choices"],
            field.metadata["help"],
            **options,
        )
        return
    if kind is bool:
        flags.DEFINE_boolean(
            field.name, field.default, field.metadata["help"], **options
        )
        return
    parser = {
        int: flags.IntegerParser,
        float: flags.FloatParser,
        str: flags.ArgumentParser,
    }[kind]()
    if field.metadata["per"]:
        parser = _OrList(parser)
    elif not is_text(field) and is_optional(field):
        parser = _OrAuto(parser)
    flags.DEFINE(
        parser,
        field.name,
        None,
        field.metadata["help"],
        serializer=flags.ArgumentSerializer(),
        **options,
    )


class _OrAuto(flags.ArgumentParser):
    """A number, or the word `auto` for None."""

    def __init__(self, parser):
        super().__init__()
        self._parser = parser
        self.syntactic_help = f"{parser.syntactic_help} or auto"

    def parse(self, argument):
        return None if argument == "auto" else self._parser.parse(argument)

    def flag_type(self):
        return f"{self._parser.flag_type()} or auto"


class _OrList(flags.ArgumentParser):
    """A number, or a text of several, which `Config` checks."""

    def __init__(self, parser):
        super().__init__()
        self._parser = parser
        self.syntactic_help = f"{parser.syntactic_help} or a list"

    def parse(self, argument):
        is_list = isinstance(argument, str) and "," in argument
        return argument if is_list else self._parser.parse(argument)

    def flag_type(self):
        return f"{self._parser.flag_type()} or list"
