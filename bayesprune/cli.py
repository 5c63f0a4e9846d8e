"""The command line: ``bayesprune run | report | compare | export | groups | methods``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

EPILOG = "bayesprune run --help lists the fields of a configuration."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 when done, 2 for bad input, 130 when interrupted."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command is not _run:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Heavy imports come after the arguments are known to be right.
    from bayesprune.errors import BayespruneError

    sys.path.insert(0, os.getcwd())  # models and methods of the user's own
    try:
        options.command(options, rest)
    except (BayespruneError, OSError) as error:
        print(f"bayesprune: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        way_on = "; continue with --resume" if options.command is _run else ""
        print(f"bayesprune: interrupted{way_on}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bayesprune", description=__doc__, epilog=EPILOG)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="carry out a run", add_help=False, allow_abbrev=False)
    run.add_argument("config", nargs="?", help="a YAML file, see experiments/")
    run.add_argument("--out", help="run folder; default: runs/NAME OF THE FILE")
    run.add_argument("--resume", action="store_true", help="continue an interrupted run")
    run.add_argument("-h", "--help", action="store_true", help="list all fields")
    run.set_defaults(command=_run, parser=run)

    report = commands.add_parser("report", help="rebuild report.html and figures")
    report.add_argument("folder")
    report.set_defaults(command=_report)

    compare = commands.add_parser("compare", help="one table and a Pareto plot of several runs")
    compare.add_argument("folders", nargs="+")
    compare.add_argument("--out", default=".", help="where compare.csv and compare.png go")
    compare.set_defaults(command=_compare)

    export = commands.add_parser("export", help="the pruned network as ONNX or program")
    export.add_argument("folder")
    export.add_argument("--format", required=True, choices=["onnx", "exported-program"])
    export.add_argument("--out", help="default: pruned.onnx or pruned.pt2 in the run folder")
    export.set_defaults(command=_export)

    groups = commands.add_parser("groups", help="prunable groups and costs of a model")
    groups.add_argument("model", help="torchvision:NAME, bayesprune:NAME or python.path:factory")
    groups.add_argument("--input", help="shape of one input, for example 3,224,224")
    groups.add_argument("--ignore", help="modules whose channels all stay, for example layer1,fc")
    groups.set_defaults(command=_groups)

    methods = commands.add_parser("methods", help="every method with its kind and reference")
    methods.set_defaults(command=_methods)
    return parser


def _run(options: argparse.Namespace, rest: list[str]) -> None:
    from bayesprune.config import config_parser, parse_config
    from bayesprune.errors import ConfigError

    if options.help:
        options.parser.print_help()
        print()
        config_parser().print_help()
        return
    if options.config is None:
        raise ConfigError("run: expected a configuration file, see experiments/")
    if not Path(options.config).is_file():
        raise ConfigError(
            f"run: expected a configuration file first, then options; no file {options.config!r}"
        )
    config = parse_config(["--config", options.config, *rest])

    from bayesprune.experiment import run_experiment

    out = Path(options.out or Path("runs") / Path(options.config).stem)
    run = run_experiment(config, out, resume=options.resume)
    dense, pruned = run.summary["dense"], run.summary["pruned"]
    table = Table(title=f"{run.summary['model']} on {run.summary['data']}: {run.summary['method']}")
    for column in ("", "test error", "MACs", "parameters", "latency"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in (("dense", dense), ("pruned", pruned)):
        table.add_row(
            name,
            f"{row['error']:.2%}",
            f"{row['macs']:,} ({row['macs'] / dense['macs']:.1%})",
            f"{row['params']:,} ({row['params'] / dense['params']:.1%})",
            f"{row['latency_ms']:.3g} ms",
        )
    Console().print(table)
    if run.plan.note:
        print(run.plan.note)
    print(f"report: {out / 'report.html'}")


def _report(options: argparse.Namespace, rest: list[str]) -> None:
    from bayesprune.experiment import load_run, rebuild_report

    print(rebuild_report(load_run(options.folder)))


def _compare(options: argparse.Namespace, rest: list[str]) -> None:
    from bayesprune.reporting import compare_runs

    out = Path(options.out)
    frame = compare_runs([Path(folder) for folder in options.folders], out)
    print(frame.to_string(index=False))
    if frame["method"].str.contains("of the same seed").any():
        print("runs of one recipe and seed are listed apart, not averaged")
    print(f"{out / 'compare.csv'}, {out / 'compare.png'}")


def _export(options: argparse.Namespace, rest: list[str]) -> None:
    from bayesprune.experiment import example_image, load_run
    from bayesprune.export import export_onnx, export_program

    run = load_run(options.folder)
    onnx = options.format == "onnx"
    out = Path(options.out or run.folder / ("pruned.onnx" if onnx else "pruned.pt2"))
    difference = (export_onnx if onnx else export_program)(run.network, example_image(run), out)
    checked = (
        "not checked: install onnxruntime for that"
        if difference is None
        else f"at most {difference:.1e} of the largest output away from the network"
    )
    print(f"{out} ({checked})")


def _groups(options: argparse.Namespace, rest: list[str]) -> None:
    import torch

    from bayesprune import models
    from bayesprune.cost import CostModel
    from bayesprune.errors import ConfigError
    from bayesprune.groups import trace_groups

    network = models.load(options.model)
    source, _, name = options.model.partition(":")
    if options.input:
        try:
            shape = tuple(int(size) for size in options.input.split(","))
        except ValueError as error:
            raise ConfigError(
                f"--input: expected sizes like 3,224,224, got {options.input}"
            ) from error
    else:
        shape = models.input_shape(name) if source == "bayesprune" else (3, 224, 224)
    ignore = options.ignore.split(",") if options.ignore else []
    groups = trace_groups(network, torch.zeros(1, *shape), ignore)
    model = CostModel(groups)
    dense = model({})
    table = Table(title=f"{options.model}, input {shape}: {dense}")
    for column in ("group", "units", "MACs per unit", "parameters per unit", "read by"):
        table.add_column(column, justify="right" if "unit" in column else "left")
    for group in groups.values():
        one = model({group.name: range(1, group.size)})
        readers = group.modules("consumer")
        table.add_row(
            group.name + ("" if group.exact else " *"),
            f"{group.size:,}",
            f"{dense.macs - one.macs:,}",
            f"{dense.params - one.params:,}",
            ", ".join(readers[:2]) + (f" and {len(readers) - 2} more" if len(readers) > 2 else ""),
        )
    console = Console()
    console.print(table)
    if not all(group.exact for group in groups.values()):
        console.print("* a normalisation over channels: removing is not the same as masking")
    for layer, reason in groups.frozen.items():
        console.print(f"not prunable: {layer}: {reason}")


def _methods(options: argparse.Namespace, rest: list[str]) -> None:
    from bayesprune import criteria, penalties, switches

    table = Table()
    for column in ("name", "kind", "reference"):
        table.add_column(column)
    kinds = {
        "switch": switches.FAMILIES,
        "penalty": penalties.PENALTIES,
        "criterion": criteria.CRITERIA,
    }
    for kind, families in kinds.items():
        for family in families:
            table.add_row(family.__name__, kind, family.reference)
    Console().print(table)
