"""Command line of the sweeps: list, plan, run, status, logs, retry, cancel, sync, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sweeps.errors import SweepError
from trainer.commandline import HELP, run_app
from trainer.errors import TrainerError

app = typer.Typer(
    help="Sweeps of training runs: price them, train what is missing, follow them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)

SweepArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", help="Name of a sweep (see `list`) or a .toml file.")
]
SweepsArgument = Annotated[
    list[str],
    typer.Argument(metavar="SWEEP...", help="Names of sweeps (see `list`) or .toml files, in this order."),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="KEY=VALUE[,VALUE...]",
        help="Only runs with this value of a setting (seed, model.d_model, ...), size or structure; "
        "repeat it for more conditions.",
    ),
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="SWEEP|RUN", help="A sweep, or (the beginning of) a run id.")
]
ResultsOption = Annotated[
    Path, typer.Option("--results", envvar="SCALING_RESULTS", help="Folder of runs and corpora.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
SlotsOption = Annotated[
    int | None, typer.Option("--slots", min=1, help="Runs at a time; default one per core or GPU.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of one run; default cores / slots.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
RESULTS = Path("results")


@app.command("list")
def list_(results: ResultsOption = RESULTS, as_json: JsonOption = False) -> None:
    """The sweeps that come with the program."""
    from sweeps import commands

    commands.list_sweeps(results, as_json)


@app.command()
def plan(
    sweeps: SweepsArgument,
    results: ResultsOption = RESULTS,
    where: WhereOption = None,
    slots: SlotsOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    write: Annotated[
        bool, typer.Option("--write", help="Also write the sweep record, as `run` does.")
    ] = False,
    power: Annotated[
        bool, typer.Option("--power", help="Also what the finished sweep will be able to tell.")
    ] = False,
    noise: Annotated[
        float | None, typer.Option("--noise", help="--power: sd of log loss between seeds.")
    ] = None,
    noise_from: Annotated[
        str | None, typer.Option("--noise-from", help="--power: sweep or CSV whose replicates measure that.")
    ] = None,
    detect: Annotated[
        float | None, typer.Option("--detect", help="--power: runs to add for this difference of slopes.")
    ] = None,
    law: Annotated[str | None, typer.Option("--law", help="--power: only this law.")] = None,
    assume: Annotated[str | None, typer.Option("--assume", help="--power: its values, as E=2,k=9.")] = None,
    save: Annotated[bool, typer.Option("--save", help="--power: keep it, to hold the sweep to it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="--save: replace what was kept.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Every run with its price and state, and the totals; starts nothing."""
    from sweeps.asked import Shape
    from sweeps.running import show_plan

    asked = {"--noise": noise, "--noise-from": noise_from, "--detect": detect}
    asked |= {"--law": law, "--assume": assume}
    options = [f"{name}={value}" for name, value in asked.items() if value is not None]
    given = [*options, *["--save"] * save, *["--force"] * force]
    if given and not power:
        raise SweepError(f"{given[0]}: needs --power")
    if power:
        _check_power(sweeps, where, as_json)
    overviews = show_plan(sweeps, results, Shape(slots, threads, device), where or [], write, as_json)
    if power:
        from sweeps.power import show_power

        print()
        raise typer.Exit(show_power(overviews[0], [*options, f"--results={results}"], save, force))


@app.command()
def run(
    sweeps: SweepsArgument,
    results: ResultsOption = RESULTS,
    where: WhereOption = None,
    executor: Annotated[
        str, typer.Option("--executor", help="Where runs are executed: local or slurm (queued, detached).")
    ] = "local",
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Slurm settings: a name in sweeps/clusters, or a file.")
    ] = None,
    then: Annotated[
        str | None, typer.Option("--then", help="slurm: queue `fit` (figures and report too) behind it.")
    ] = None,
    slots: SlotsOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    max_flops: Annotated[
        float | None, typer.Option(min=0, help="Refuse if more FLOPs are to be spent.")
    ] = None,
    max_hours: Annotated[float | None, typer.Option(min=0, help="Refuse if it is to take longer.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before a sweep of more than an hour.")
    ] = False,
    no_mirror: Annotated[bool, typer.Option("--no-mirror", help="Leave MLflow alone.")] = False,
    export: Annotated[
        bool | None,
        typer.Option(help="local: keep tables/NAME_runs.csv up to date; default yes, of a file no."),
    ] = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="local: run a copy of the program, which no edit reaches.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
) -> None:
    """Train what is missing, sweep after sweep; Ctrl-C checkpoints, the same command goes on."""
    from sweeps import running
    from sweeps.asked import Shape

    options = running.Options(
        results, executor, cluster, then, Shape(slots, threads, device), where or [], max_flops, max_hours,
        yes, not no_mirror, export, frozen, dry_run,
    )  # fmt: skip
    raise typer.Exit(running.run(sweeps, options))


@app.command()
def search(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study or a .toml file; default: list them.")
    ] = None,
    results: ResultsOption = RESULTS,
    executor: Annotated[
        str, typer.Option("--executor", help="Where trials are trained: local or slurm.")
    ] = "local",
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Slurm settings: a name in sweeps/clusters, or a file.")
    ] = None,
    slots: SlotsOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Runs in each cell; default what the study says.")
    ] = None,
    max_flops: Annotated[float | None, typer.Option(min=0, help="Refuse a study that may need more.")] = None,
    max_hours: Annotated[
        float | None, typer.Option(min=0, help="Refuse a study that may take longer.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before a study of more than an hour.")
    ] = False,
    no_mirror: Annotated[bool, typer.Option("--no-mirror", help="Leave MLflow alone.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Price it, say what is known, train nothing.")
    ] = False,
    export_sweep: Annotated[
        Path | None, typer.Option("--export-sweep", help="Write the best runs as a sweep file.")
    ] = None,
) -> None:
    """Search for the best shape or setting with Optuna; every trial is a run, none is trained twice."""
    if study is None:
        from sweeps.search.listing import studies_table

        print(studies_table())
        return
    from sweeps.running import check_executor
    from sweeps.search.command import Options
    from sweeps.search.command import search as search_study

    check_executor(executor, cluster, None)
    ending = search_study(
        study,
        Options(
            results, executor, cluster, slots, threads, device, trials, max_flops, max_hours, yes,
            not no_mirror, dry_run, export_sweep,
        ),
    )  # fmt: skip
    print(ending.line)
    raise typer.Exit(ending.code)


@app.command()
def status(
    sweeps: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SWEEP]...", help="A sweep, with --watch several; default all that were run."
        ),
    ] = None,
    results: ResultsOption = RESULTS,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on until all is over, or Ctrl-C (exit code 0).")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option("--interval", min=0.1, help="--watch: seconds; default 2, not on a terminal 30."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless every run is done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """How far sweeps are; with --watch what trains now, whoever started it (--json: an object a line)."""
    if watch:
        from sweeps.watchview import watch as follow

        if not follow(results, sweeps or [], interval, as_json) and check:
            raise typer.Exit(1)
        return
    from sweeps import commands

    _check_status(sweeps, interval)
    problems, done = commands.status_of(sweeps[0] if sweeps else None, results, as_json)
    _refuse_corrupt(problems)
    if check and not done:
        raise typer.Exit(1)


@app.command()
def show(target: Annotated[str, typer.Argument(metavar="RUN")], results: ResultsOption = RESULTS,
         as_json: JsonOption = False) -> None:  # fmt: skip
    """Configuration, state and result of one run."""
    from sweeps import commands

    commands.show_run(target, results, as_json)


@app.command()
def logs(
    target: TargetArgument,
    results: ResultsOption = RESULTS,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C or the run's end.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Lines of each run.")] = 20,
) -> None:
    """What a run, or each run of a sweep, printed and logged, and why it failed."""
    from sweeps import commands

    commands.logs_of(target, results, follow, lines)


@app.command()
def retry(target: TargetArgument, results: ResultsOption = RESULTS) -> None:
    """Make failed, diverged and corrupt runs eligible again; results are moved aside, never deleted."""
    from sweeps import commands

    commands.retry(target, results)


@app.command()
def cancel(sweep: SweepArgument, results: ResultsOption = RESULTS) -> None:
    """Ask all workers of a sweep to checkpoint and stop; its runs stay resumable."""
    from sweeps import commands

    commands.cancel(sweep, results)


@app.command()
def sync(
    sweeps: Annotated[
        list[str], typer.Argument(metavar="SWEEP...", help="Names of sweeps (see `list`) or .toml files.")
    ],
    results: ResultsOption = RESULTS,
    uri: Annotated[str | None, typer.Option("--uri", help="Tracking URI; default the sweep's.")] = None,
    if_run: Annotated[
        bool, typer.Option("--if-run", help="Skip, with a line, what was never run in this folder.")
    ] = False,
) -> None:
    """Bring the MLflow mirror of sweeps up to date, runs and report; rebuilds it where it was deleted."""
    from sweeps import commands

    for sweep in sweeps:
        commands.sync(sweep, results, uri, if_run, named=len(sweeps) > 1)


def _refuse_corrupt(lines: list[str]) -> None:
    if lines:
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise SweepError(f"{lines[0]}{more}")


def _check_status(sweeps: list[str] | None, interval: float | None) -> None:
    if interval is not None:
        raise SweepError(f"--interval {interval:g}: needs --watch")
    if sweeps and len(sweeps) > 1:
        raise SweepError(f"status of {len(sweeps)} sweeps: ask for one, or give --watch")


def _check_power(sweeps: list[str], where: list[str] | None, as_json: bool) -> None:
    if as_json:
        raise SweepError("--power: prints text; leave --json out, or see 'python -m analysis design --help'")
    if where or len(sweeps) > 1:
        raise SweepError("--power: is about one whole sweep; name one, and leave --where out")


def main() -> None:
    """Run the command line; a user mistake becomes one red line and exit code 2."""
    run_app(app, "sweeps", (SweepError, TrainerError))


if __name__ == "__main__":
    main()
