"""Mistakes of a command line in one to three lines, in place of a traceback."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from torchrl_shm.configs.groups import MEMBERS
from torchrl_shm.training.run import is_of_training

# asks Hydra to leave errors as they are
_TRACEBACK = "HYDRA_FULL_ERROR"
_WHERE = f"({_TRACEBACK}=1 shows where)"
_explaining = False
# of sweeps: the package of each, and the extra that brings it
_LAUNCHERS = {
    "hydra/launcher/joblib": ("hydra-joblib-launcher", "cluster"),
    "hydra/launcher/submitit_local": ("hydra-submitit-launcher", "cluster"),
    "hydra/launcher/submitit_slurm": ("hydra-submitit-launcher", "cluster"),
    "hydra/launcher/ray": ("hydra-ray-launcher", "ray-launcher"),
}
_EXPECTED = (
    ValueError, TypeError, OSError, ImportError, RuntimeError, NotImplementedError,
    FloatingPointError,
)  # fmt: skip


@contextmanager
def mistakes_in_a_line() -> Generator[None]:
    """End the process with code 2 and a few words where a command line is wrong.

    What goes wrong once training has begun, and what nobody has foreseen, keeps its traceback; with
    the environment variable `HYDRA_FULL_ERROR=1` all does. But where it is the environment that
    goes wrong then, that is said in a few words, too, and the code is 1.

    Raises:
        SystemExit: a mistake was explained on stderr.
    """
    if os.environ.get(_TRACEBACK):
        yield
        return
    os.environ[_TRACEBACK] = "1"
    before = are_explained()
    explain_mistakes(True)
    try:
        yield
    except Exception as error:
        refuse(error)
        raise
    finally:
        explain_mistakes(before)
        del os.environ[_TRACEBACK]


def refuse(error: Exception) -> None:
    """End the process where an error is a mistake of the command line or of a task; explain it.

    Where tracebacks are asked for, or no command line was read, nothing happens.

    Args:
        error: what was raised.

    Raises:
        SystemExit: it is one; it was explained on stderr.
    """
    if mistake := in_words(error):
        print(mistake, file=sys.stderr)
        raise SystemExit(1 if is_of_training(error) else 2) from None


class Mistake(Exception):
    """What is wrong with a command line, in words that any process can send to any other."""


def in_words(error: Exception) -> Mistake | None:
    """The explanation of an error, if it is a mistake of the command line and to be explained.

    Args:
        error: what was raised.

    Returns:
        An error that says no more than what `explain` returns.
    """
    text = explain(error) if _explaining else None
    return Mistake(text) if text else None


def are_explained() -> bool:
    """Whether mistakes are explained here, and not shown as tracebacks."""
    return _explaining


def explain_mistakes(wanted: bool) -> None:
    """Explain mistakes from here on, or do not.

    Args:
        wanted: what `are_explained` said in the process of the command.
    """
    global _explaining
    _explaining = wanted


def explain(error: Exception) -> str | None:
    """Say what is wrong with a command line.

    Args:
        error: what was raised on the way from the command line to the first batch, or, by an
            environment, later.

    Returns:
        One to three lines; `None` if this is no mistake of the command line or of a task.
    """
    if is_of_training(error):
        return _explain_task(error)
    match error:
        case Mistake():
            return str(error)
        case MissingConfigException(missing_cfg_file=str(path)) if path in _LAUNCHERS:
            group, _, name = path.rpartition("/")
            package, extra = _LAUNCHERS[path]
            return f"{group}={name} needs {package}: pip install 'torchrl_shm[{extra}]'"
        case MissingConfigException(missing_cfg_file=str(path), options=list(options)):
            group, _, name = path.rpartition("/")
            own = "\na task of gymnasium is env=gym env.id=Name-v0" if group == "env" else ""
            return f"{group}={name} is unknown; {_instead(name, options)}{own}"
        case OverrideParseException(override=str(text)):
            said = str(error).splitlines()
            # a first line that repeats what was given
            reason = next((line for line in said if not line.startswith("Error parsing")), said[0])
            return f"{text} cannot be read, {reason}; write group.name=value"
        case ConfigCompositionException(__cause__=OmegaConfBaseException() as cause):
            return _explain_override(str(error).splitlines()[0], cause)
        case InstantiationException(__cause__=ValidationError() as cause):
            place = re.search(r"^full_key: (.+)$", str(error), re.M)
            return _explain_types(cause, place[1] if place else "")
        case InstantiationException(__cause__=Exception() as cause):
            return explain(cause)
        case ValidationError():
            return _explain_types(error)
        case HydraException() | OmegaConfBaseException():
            return _short(str(error))
        case OSError(filename=str(name), strerror=str(reason)):
            return f"{name}: {reason}"
        # a sentence, and no key that a dictionary lacks
        case KeyError(args=(str(text),)) if " " in text and _is_ours(error):
            return _short(text)
        case _ if isinstance(error, _EXPECTED) and _is_ours(error):
            # a value or a file that is wrong needs no more words than these
            plain = isinstance(error, ValueError | OSError | ImportError | FloatingPointError)
            return _short(str(error)) + ("" if plain else f"\n{_WHERE}")
        case _:
            return None


def _explain_task(error: Exception) -> str | None:
    """What an environment has done, or which number was not finite, and in which run."""
    place = _raised_in(error)
    is_task = isinstance(error, _EXPECTED) and place.startswith("torchrl_shm.envs.")
    is_number = isinstance(error, FloatingPointError) and place == "torchrl_shm.training.finite"
    if not is_task and not is_number:
        return None
    return "\n".join([_short(str(error), 1), *error.__notes__, _WHERE])


def _explain_override(message: str, cause: OmegaConfBaseException) -> str:
    """A value that does not fit, or an option that does not exist."""
    reason = _short(str(cause), 1)
    if given := re.match(r"Error merging override (.+)", message):
        return f"{given[1]}: {reason}"
    unknown = re.match(r"Could not override '(.+)'", message)
    if unknown is None:
        return f"{message} {reason}"
    # where the group is unknown, the key is that of the group
    place, _, name = (cause.full_key or unknown[1]).rpartition(".")
    options = _options(cause.parent_node)
    if place.endswith("kwargs"):
        return f'{place}.{name} is unknown; all of them are one value: "{place}={{{name}: ...}}"'
    if not get_close_matches(name, options, 1):
        # it may be that of another group, or have none
        groups = {group: cause.parent_node[group] for group in options} if not place else _common()
        everywhere = {
            f"{group}.{option}": option
            for group, config in groups.items()
            for option in _options(config)
        }
        near = get_close_matches(name, everywhere.values(), 1, 0.8)
        if near:
            found = sorted(full for full, option in everywhere.items() if option == near[0])
            return f"{unknown[1]} is unknown; did you mean {' or '.join(found)}?"
    given = f"{place}.{name}" if place else name
    advice = _who_has(place, name)
    if "kwargs" in options and not get_close_matches(name, options, 1):
        advice = f'\nfor an argument of the environment write "{place}.kwargs={{{name}: ...}}"'
    return f"{given} is unknown; {_instead(name, options, place)}{advice}"


def _who_has(group: str, option: str) -> str:
    """The first members of a group that have an option which the chosen one lacks."""
    path = group.replace(".", "/") + "/"
    members = [member for member in sorted(MEMBERS) if member.startswith(path)]
    having = [x for x in members if option in _options(OmegaConf.structured(MEMBERS[x].make()))]
    if not having:
        return ""
    names = " and ".join(f"{path[:-1]}={x.removeprefix(path)}" for x in having[:2])
    return f"\n{names} {'has' if len(having) == 1 else 'have'} it"


def _common() -> dict[str, Any]:
    """Groups whose options are the same in all recipes."""
    members = {"experiment": "default", "collector": "multi_sync", "logger": "wandb"}
    return {
        group: OmegaConf.structured(MEMBERS[f"{group}/{name}"].make())
        for group, name in members.items()
    }


def _options(config: Any) -> list[str]:
    """Names that may be set, without those of hydra and hydra-zen."""
    if not isinstance(config, Mapping):
        return []
    return [str(key) for key in config if key[0] != "_" and key not in ("hydra", "cell")]


def _explain_types(error: ValidationError, place: str = "") -> str:
    """The first value whose type is wrong."""
    first = error.errors()[0]
    name = ".".join(map(str, filter(None, (place, *first["loc"]))))
    given = repr(first["input"])
    given = given if len(given) <= 60 else type(first["input"]).__name__
    return f"{name}={given}: {_short(first['msg'], 1)}"


def _instead(name: str, options: Iterable[str], place: str = "") -> str:
    """The nearest names, or else all of them."""
    options = sorted(options)
    near = get_close_matches(name, options, 3)
    if near:
        names = [f"{place}.{option}" if place else option for option in near]
        return f"did you mean {' or '.join(names)}?"
    names = ", ".join(options)
    if len(names) > 400:
        return "--help lists what there is"
    return f"{place} has {names}" if place else f"choose one of {names}"


def _short(text: str, lines: int = 2) -> str:
    return "\n".join([line.strip() for line in text.strip().splitlines() if line.strip()][:lines])


def _is_ours(error: BaseException) -> bool:
    """Whether this package, or what reads the command line, has raised it in words for users."""
    return _raised_in(error).partition(".")[0] in ("torchrl_shm", "hydra", "omegaconf")


def _raised_in(error: BaseException) -> str:
    """Name of the module."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return module
