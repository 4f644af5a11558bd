"""Shared by all subcommands: the entry point, errors as messages, models by configuration, and output."""

from __future__ import annotations

import copy
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from fastcomposer.cli.help import show_help
from fastcomposer.sweeps import is_sweep
from fastcomposer.utils.assets import packaged

if TYPE_CHECKING:
    from rich.table import Table

CONFIG_FOLDER = packaged("conf")
_PARTS = ("base", "image_encoder", "architecture", "weights", "variant", "t5", "max_subjects")
_WIDEST = 1000  # columns of a table in a log
_EXTRAS = {
    "facenet_pytorch": "faces",
    "gradio": "demo",
    "optuna": "sweeps",
    "skimage": "prepare",
    "spacy": "prepare",
}
"""Packages that a plain installation does not have, and the extras that bring them."""
_USELESS_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\)",  # inside Lightning
    r".*in eval mode at the start of training",  # frozen parts are in eval mode on purpose
    r".*does not have many workers",
    r".*local_dir_use_symlinks",  # inside diffusers
    r"Checkpoint directory .* exists and is not empty",  # a resumed training finds its own there
)


def command(
    config_name: str,
    *,
    free_text: Sequence[str] = (),
    alias: tuple[str, str] | None = None,
    check_objective: Callable[[DictConfig], None] | None = None,
    sweep_jobs: Sequence[str] | None = None,
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make an entry point of a function that takes the composed configuration.

    Expected errors end the command with their message and status 1; ``HYDRA_FULL_ERROR=1`` shows the trace.
    SIGTERM ends it with status 143. A search optimizes the value that the function returns.

    Args:
        config_name: Name of the file in ``conf/``.
        free_text: Keys whose values need no quotes.
        alias: A name that is a configuration group elsewhere, and the key that it stands for here.
        check_objective: Refuses an ``objective`` that the function does not measure.
        sweep_jobs: Overrides of a call with ``sweep=jobs``, which measures the jobs of a training sweep.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=config_name)
        @wraps(function)
        def composed(config: DictConfig) -> Any:
            from fastcomposer.utils.texts import keep_texts

            keep_texts(config)

            def work() -> Any:
                _quieten()
                if HydraConfig.get().mode is RunMode.MULTIRUN:  # a single run was checked before its folder
                    from fastcomposer.cli.settings import check_settings

                    check_settings(config, config_name)
                if config.get("threads") is not None:
                    import torch

                    torch.set_num_threads(config.threads)
                with _ending_on_sigterm():
                    return function(config)

            if HydraConfig.get().mode is RunMode.MULTIRUN:
                from fastcomposer.sweeps.job import as_job

                return as_job(work, config, message_of)
            try:
                return work()
            except Exception as error:
                message = message_of(error)
                if os.environ.get("HYDRA_FULL_ERROR") == "1" or message is None:
                    raise
                exit_with(message)

        @wraps(function)
        def main() -> None:
            _quieten()  # a search checks its objective before its jobs, and what that imports reads this
            arguments = sys.argv[1:]
            for key in free_text:
                arguments = [quoted(argument, key) for argument in arguments]
            if alias is not None:
                arguments = [renamed(argument, *alias) for argument in arguments]
            if sweep_jobs is not None and "sweep=jobs" in arguments:
                from fastcomposer.sweeps.trained_jobs import with_jobs

                try:
                    arguments = with_jobs(arguments, *sweep_jobs)
                except (ValueError, OSError) as error:
                    exit_with(error)
            _check_groups(arguments)
            sys.argv = [sys.argv[0], *arguments]
            if show_help(config_name, CONFIG_FOLDER, arguments):
                return
            if not is_sweep(arguments):
                composed()
                return
            from fastcomposer.sweeps.session import watched

            with watched(config_name, CONFIG_FOLDER, check_objective):
                composed()

        return main

    return decorate


class CheckSettings(Callback):
    """Ends a command whose settings are not valid, before Hydra makes its folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check; Hydra lets no other exception than SystemExit pass."""
        from fastcomposer.cli.settings import check_settings
        from fastcomposer.utils.files import check_folder
        from fastcomposer.utils.texts import keep_texts

        config = copy.deepcopy(config)
        with read_write(config), open_dict(config):
            config.hydra.runtime.output_dir = config.hydra.run.dir
        keep_texts(config)
        HydraConfig.instance().set_config(config)  # Hydra sets its own next
        try:
            check_settings(config, kwargs["config_name"])
            check_folder("hydra.run.dir", config.hydra.run.dir)
        except (ValueError, OmegaConfBaseException) as error:
            exit_with(error)


def _check_groups(arguments: Sequence[str]) -> None:
    """Refuse what is no name for a group, of which Hydra makes a trace."""
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if a[:1] != "-"])
    except HydraException:  # which Hydra reports
        return
    for override in overrides:
        if (CONFIG_FOLDER / override.key_or_group).is_dir() and not override.is_delete():
            value = override.value()
            named = value if isinstance(value, list) else [value]
            texts = all(isinstance(one, str | QuotedString) for one in named)
            if not texts and not override.is_sweep_override():
                exit_with(f"{override.input_line}: takes the name of a file in conf/{override.key_or_group}")


def quoted(argument: str, key: str) -> str:
    """Put the value of ``key=value`` in Hydra's quotes, unless it has some or the key is another."""
    from fastcomposer.utils.texts import escaped

    name, equals, value = argument.partition("=")
    if name != key or not equals or value[:1] in ("'", '"'):
        return argument
    return f"{name}={QuotedString(escaped(value), Quote.double).with_quotes()}"


def renamed(argument: str, name: str, key: str) -> str:
    """Replace a name that Hydra would take for a group by the key that it stands for."""
    given, equals, value = argument.partition("=")
    return f"{key}={value}" if given == name and equals else argument


def model_parts(model: DictConfig) -> dict[str, Any]:
    """Arguments of ``FastComposer.from_pretrained`` in the group ``model``."""
    return {key: model[key] for key in _PARTS}


def trained_pipeline(config: DictConfig, scheduler: Mapping[str, Any] | None) -> Any:
    """Load ``checkpoint`` over ``model``, with the safety checker where there is one, on the GPU if any."""
    import torch

    from fastcomposer.evaluation.pipelines import load_trained
    from fastcomposer.pipeline.schedulers import use_scheduler

    parts = model_parts(config.model)
    pipeline: Any = load_trained(checkpoint=config.checkpoint, safety_checker=True, **parts)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    use_scheduler(pipeline, scheduler)
    return pipeline


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C, with status 143; trainings listen for it themselves."""
    received: list[int] = []

    def end(number: int, frame: Any) -> None:
        received.append(number)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # a launcher's, which cannot listen
        yield
        return
    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Exception as error:
        if received:  # cleaning up what was half set up may fail
            raise SystemExit(128 + received[0]) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def message_of(error: Exception) -> str | None:
    """Message of an error for the user; ``None`` for a defect of ours, whose trace is wanted.

    Wrong settings, files and captions, and failing disks and processes are the user's to act on.
    """
    from pydantic import ValidationError

    from fastcomposer.utils.errors import FaultError, invalid_fields
    from fastcomposer.utils.workers import message_in_worker

    cause: BaseException = error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ValidationError):
        return f"{cause.title}: {invalid_fields(cause)}"
    if isinstance(cause, ValueError | OSError | FaultError | OmegaConfBaseException):
        return message_in_worker(str(cause))
    if isinstance(cause, ModuleNotFoundError) and cause.name in _EXTRAS:
        extra = _EXTRAS[cause.name]
        how = f"pip install 'fastcomposer[{extra}]'"
        if cause.name == "facenet_pytorch":  # its metadata asks for torch<2.3, which pip cannot ignore
            how = f"pip install --no-deps facenet-pytorch==2.6.0, or uv sync --extra {extra}"
        return f"{cause.name} is not installed: {how}"
    if isinstance(error, InstantiationException):  # a type that a constructor did not check
        return f"{' '.join(str(error).split())} (HYDRA_FULL_ERROR=1 shows where)"
    return None


def exit_with(message: object) -> NoReturn:
    """End the command with a message and status 1."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _quieten() -> None:
    """Print only progress, results and warnings that call for action."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("litdata").setLevel(logging.WARNING)
    for text in _USELESS_WARNINGS:
        warnings.filterwarnings("ignore", message=text)


def quieten_lightning() -> None:
    """Silence Lightning's notices but for one; to be called after its import, which sets these levels."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    launcher = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    launcher.setLevel(logging.INFO)
    launcher.addFilter(_dead_process)


def _dead_process(record: logging.LogRecord) -> bool:
    """Print that a process died, after which Lightning kills all of them."""
    notice = record.getMessage().partition(" Forcefully")[0]
    if "terminated with code" in notice:
        print(
            f"error: {notice} All processes end; what is written is kept, and the same call resumes.",
            file=sys.stderr,
            flush=True,
        )
    return False


def show_table(table: Table) -> None:
    """Print a table; where the output is no terminal, as wide as its contents ask for."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        wanted = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
        console = Console(width=max(console.width, wanted))
    console.print(table)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON."""
    from fastcomposer.utils.files import write_atomically

    write_atomically(file, lambda out: out.write((json.dumps(content, indent=2) + "\n").encode()))


def write_figures(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file of figures, and print its path."""
    write_json(file, content)
    print(file)
    conclude({"figures": file})


def conclude(paths: Mapping[str, str | Path | None]) -> None:
    """Print to standard error the paths that exist, by what they hold, relative where they are inside."""
    existing = {what: Path(path).absolute() for what, path in paths.items() if path and Path(path).exists()}
    here, width = Path.cwd(), max(map(len, existing), default=0)
    print(file=sys.stderr)
    for what, path in existing.items():
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        print(f"  {what:<{width}}  {shown}", file=sys.stderr)
