"""The command line: `python -m vae_core list | data NAME… | run NAME | reproduce | table`."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from vae_core import data
from vae_core.experiments import run as experiment_run
from vae_core.experiments.records import (
    LOSSES,
    RunInProgressError,
    default_out,
    format_mean_std,
    read_record,
    record_path,
    valid_records,
)
from vae_core.experiments.registry import EXPERIMENTS, find
from vae_core.experiments.setups import on_folder

MANUAL = """\
The experiments of the book: what they are, how they went, and how to make them again.

    python -m vae_core list                                what there is, what it costs, what is recorded
    python -m vae_core data mnist fashion-mnist            fetch data sets into data/, once
    python -m vae_core run chen-mnist-d20 --epochs 2       train, test, and write a record
    python -m vae_core run chen-mnist-d20 --resume         go on after an interruption, to the same bits
    python -m vae_core run chen-mnist-d20 --data folder:cats
                                                           the same network and settings, on the images in cats/
    python -m vae_core reproduce --only 'chen-mnist-*'     all that have no valid record, cheapest first
    python -m vae_core table                               printed figures beside those obtained
    torchrun --nproc-per-node 2 -m vae_core run NAME       several processes train one model
"""
AFTERWARDS = """\
`COMMAND --help` tells a command's options. Records go to book/results/ (--out), data to data/ (--data-root or the
variable VAE_CORE_DATA). Results stand on stdout; errors and warnings, one sentence each, and the progress bar (on a
terminal only) on stderr. Exit status: 0 done, 1 an error that the sentence names, 2 a command line that cannot be read,
130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 on success, 1 after one sentence on stderr for bad input, 130 if interrupted.

    With `--debug` an error shows its traceback.
    """
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning  # type: ignore[assignment]
            options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the program that reads, such as `head`, has ended; discard what is buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ArithmeticError) as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished epochs are kept, go on with --resume", file=sys.stderr)
        return 130
    return 0


def _print_warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; `parse_args` raises SystemExit for one that it cannot read."""
    form = argparse.RawDescriptionHelpFormatter
    whole = argparse.ArgumentParser(
        prog="python -m vae_core", description=MANUAL, epilog=AFTERWARDS, formatter_class=form
    )
    whole.add_argument("--debug", action="store_true", help="show an error's traceback")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    root, out, device, debug = _shared_options()

    def command(name: str, function: Callable, parents: list, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[*parents, debug], help=text, description=text)
        added.set_defaults(command=function)
        return added

    command("list", _list, [out], "show the experiments, their cost and whether they are recorded")
    fetch = command("data", _data, [root], "load data sets, fetching what is missing")
    fetch.add_argument("names", nargs="+", metavar="NAME", help=", ".join(data.NAMES))
    run = command("run", _run, [root, out, device], "train and test one experiment and write its record")
    run.add_argument("name", metavar="NAME", help="a name that `list` shows")
    run.add_argument("--epochs", type=int, metavar="N", help="instead of the experiment's own number")
    run.add_argument("--seed", type=int, metavar="S", help="instead of the experiment's own")
    run.add_argument("--data", metavar="folder:PATH", help="images of your own instead of the experiment's data set")
    run.add_argument("--resume", action="store_true", help="go on from the checkpoint of an interrupted run")
    again = command("reproduce", _reproduce, [root, out, device], "run all that have no valid record, cheapest first")
    again.add_argument("--only", default="*", metavar="PATTERN", help="names to run, as in the shell: 'chen-mnist-*'")
    command("table", _table, [out], "what the documents printed beside what was obtained")
    return whole


def _shared_options() -> list[argparse.ArgumentParser]:
    root, out, device, debug = shared = [argparse.ArgumentParser(add_help=False) for _ in range(4)]
    root.add_argument("--data-root", type=Path, metavar="DIR", help="where data sets are kept (VAE_CORE_DATA, data/)")
    out.add_argument("--out", type=Path, metavar="DIR", default=default_out(), help="where records lie")
    device.add_argument("--device", default="auto", help="auto, cpu or cuda")
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show an error's traceback")
    return shared


def _bar() -> bool:
    """Return whether to show a progress bar: not where stderr goes to a file or a pipe."""
    return sys.stderr.isatty()


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _list(options: argparse.Namespace) -> None:
    rows = [("NAME", "DATA", "EPOCHS", "SEEDS", "TFLOP", "RECORD", "SOURCE")]
    for e in EXPERIMENTS.values():
        seeds = ",".join(map(str, e.seeds))
        state = _state(record_path(e, e.seed, options.out))
        rows.append((e.name, e.dataset, str(e.epochs), seeds, f"{e.cost / 1e12:.2f}", state, e.source))
    _print_rows(rows)


def _state(path: Path) -> str:
    if not path.exists():
        return "none"
    try:
        record = json.loads(path.read_text())
        return f"loss {record['test']['loss']:.2f} after {record['config']['epochs']} epochs"
    except (ValueError, TypeError, KeyError, OSError):
        return f"unreadable: {path.name}"


def _reproduce(options: argparse.Namespace) -> None:
    """Run all experiments without a record; each process of `torchrun` takes those that no other has locked."""
    todo = experiment_run.pending(options.out, options.only)
    print(f"{len(todo)} runs without a valid record among those that match {options.only!r}")
    for k, (experiment, seed) in enumerate(todo, 1):
        if read_record(experiment, seed, options.out):
            continue  # another process has made it since
        print(f"[{k}/{len(todo)}] {experiment.name}, seed {seed}", flush=True)
        run = dict(
            seed=seed, device=options.device, data_root=options.data_root, out=options.out, resume=True, progress=_bar()
        )
        try:
            record, _ = experiment_run.run(experiment.name, **run)
        except RunInProgressError:
            print(f"[{k}/{len(todo)}] another process is at it", flush=True)
            continue
        print(f"[{k}/{len(todo)}] test loss {record['test']['loss']:.3f} in {record['wall_seconds']:.0f} s", flush=True)


def _table(options: argparse.Namespace) -> None:
    rows = [("EXPERIMENT", "FIGURE", "PRINTED", "OBTAINED", "SEEDS", "SECONDS", "DEVICE")]
    for e in EXPERIMENTS.values():
        records = valid_records(e, options.out)
        more = [figure for figure in e.printed if figure not in LOSSES]
        for figure in (*LOSSES, *more) if records else ():
            obtained = format_mean_std(record["test"][figure] for record in records)
            printed = f"{e.printed[figure]:.2f}" if figure in e.printed else "not printed"
            seconds, device = f"{mean(r['wall_seconds'] for r in records):.0f}", records[0]["device"]
            rows.append((e.name, figure, printed, obtained, str(len(records)), seconds, device))
    _print_rows(rows)


def _epochs(path: Path) -> int:
    """Return the number of epochs of the record at `path`, 0 if there is none that can be read."""
    try:
        return len(json.loads(path.read_text())["history"])
    except (ValueError, TypeError, KeyError, OSError):
        return 0


def _data(options: argparse.Namespace) -> None:
    for name in options.names:
        d = data.load(name, options.data_root)
        sizes = f"{len(d.x_train)} training and {len(d.x_test)} test images of shape {d.image_shape}"
        print(f"{name}: {sizes}, sha256 {d.sha256}")


def _run(options: argparse.Namespace) -> None:
    experiment = find(options.name) if options.data is None else on_folder(find(options.name), options.data)
    seed = experiment.seed if options.seed is None else options.seed
    before = _epochs(record_path(experiment, seed, options.out))
    record, path = experiment_run.run(
        options.name, epochs=options.epochs, seed=options.seed, device=options.device,
        data_root=options.data_root, out=options.out, resume=options.resume, together=True,
        data=options.data, progress=_bar(),
    )  # fmt: skip
    if "test" not in record:
        return  # only the first of several processes prints the result
    figures = record["test"]
    title = record["name"] + (f" on {experiment.dataset}" if options.data else "")
    print(f"{title}: {len(record['history'])} epochs, seed {record['seed']}, {record['device']}")
    print(f"test loss             {figures['loss']:9.3f} nats per image ({figures['n']} images)")
    print(f"reconstruction error  {figures['reconstruction']:9.3f} (entropy floor {figures['entropy_floor']:.3f})")
    print(f"KL                    {figures['kl']:9.3f}")
    print(f"record: {path}")
    if before > len(record["history"]):
        print(f"note: it replaces one of {before} epochs; if that was committed, `git restore` brings it back")
