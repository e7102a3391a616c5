"""A real Slurm of several nodes on this one machine: its daemons and the accidents that befall them.

Everything lives in one folder; nothing outside it is touched. Every node's daemon runs in a UTS and a mount
namespace of its own: inside a job `hostname` is n1, n2, ... and these names resolve. Processes are found by a
mark that only this lab has. So a job's process that has run away from its step is found, and so is everything
after a crash of the test process: `Lab(folder).down()` needs no more than the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

# As a script this file must find its neighbours by the same names as under pytest.
sys.path.insert(0, str(Path(__file__).parents[1]))

from slurm import files, processes
from slurm.files import MAX_FOLDER, PORTS, Settings

SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "unshare", "hostname")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb-admin")
# The lab may be asked from inside a job of another Slurm, whose variables would steer the clients.
FOREIGN = ("SLURM", "SBATCH", "SRUN", "SALLOC", "SQUEUE", "SINFO", "SCANCEL", "SACCT")


class LabError(Exception):
    """A lab cannot do what it was asked: one line, and the end of a daemon's log where one is to blame."""


def why_not(accounting: bool = False) -> str | None:
    """Return why no lab can run here and how to mend it, or None."""
    if os.geteuid() != 0:
        return "root is needed for the nodes' namespaces; run the tests as root"
    for name in PROGRAMS + ACCOUNTING_PROGRAMS * accounting:
        if shutil.which(name, path=SEARCH_PATH) is None:
            words = " accounting" * accounting
            return f"{name} is not installed; as root run tests/slurm/install.sh{words}"
    return None


class Lab:
    """A Slurm cluster in `folder`: nodes n1, n2, ..., partitions main (default), low (preemptable) and high.

    `cpus`, `mem_mb` (MB) and `gpus` are what each node promises; the machine need not have them (a GPU is
    only counted, and put into CUDA_VISIBLE_DEVICES). `base_port` 0 takes a free range. `extra_conf` are lines
    of slurm.conf, such as KillWait=30. Where `folder` holds a lab already, that lab's settings are taken.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        nodes: int = 4,
        cpus: int = 2,
        mem_mb: int = 4000,
        gpus: int = 0,
        accounting: bool = False,
        max_array_size: int = 10001,
        base_port: int = 0,
        **extra_conf: str | int,
    ) -> None:
        self.folder = Path(folder).absolute()
        self._children: list[subprocess.Popen[bytes]] = []
        self._wished_port = base_port
        extra = {key: str(value) for key, value in extra_conf.items()}
        self.settings = Settings(
            nodes,
            cpus,
            mem_mb,
            gpus,
            accounting,
            max_array_size,
            base_port,
            extra,
            mark=secrets.token_hex(12),
        )
        if self.exists():
            self.settings = files.read(self.folder)

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def exists(self) -> bool:
        """Say whether the folder holds a lab, whole or broken."""
        return files.kept_in(self.folder).exists()

    def environment(self) -> dict[str, str]:
        """Return what the environment of a client (sbatch, srun, ...) needs beside its own variables."""
        return {"SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    # ---------------------------------------------------------------- up and down

    def up(self) -> None:
        """Start everything and wait until all nodes are idle; LabError and nothing left where that fails."""
        reason = why_not(self.settings.accounting)
        if reason is None and self.exists():
            reason = f"{self.folder} holds a lab already; take it down first"
        elif reason is None and self.folder.exists() and any(self.folder.iterdir()):
            reason = f"{self.folder} is not empty; name an empty or a new folder"
        elif reason is None and len(str(self.folder)) > MAX_FOLDER:
            reason = f"{self.folder} is too long for unix sockets; at most {MAX_FOLDER} characters"
        if reason:
            raise LabError(reason)
        port = self._wished_port or files.free_ports(len(PORTS) + self.settings.nodes)
        self.settings = replace(self.settings, base_port=port)
        try:
            files.write(self.folder, self.settings)
            self._munge_start()
            if self.settings.accounting:
                self._accounting_start()
            self.controller_start()
            daemons = [self._slurmd_start(k) for k in self._all()]
            for k, child in zip(self._all(), daemons, strict=True):
                self._wait(f"n{k}", child, partial(self._is_idle, k), 20)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Kill every process of the lab and remove its folder; nothing to do where there is no lab."""
        if self.exists():
            self._kill("")
            self._children.clear()
            shutil.rmtree(self.folder)

    def restore(self) -> None:
        """Make the lab as after `up`: kept if all is idle and nothing is left over, else built anew."""
        with contextlib.suppress(LabError):
            # Without a controller clients would ask for seconds, so its process is looked for first.
            whole = self._owned("slurmctld") and all(self._slurmd(k) for k in self._all())
            if (
                whole
                and not self._unrest()
                and all(self._owned(f"n{k}") == self._slurmd(k) for k in self._all())
            ):
                return
        self.down()
        self.up()

    # ---------------------------------------------------------------- accidents

    def node_kill(self, k: int) -> None:
        """Node k loses its power: daemon and jobs are gone, and nobody tells the controller."""
        self._kill(f"n{k}")

    def node_fail(self, k: int) -> None:
        """Node k loses its power and the controller knows it at once; its jobs are requeued."""
        self.node_kill(k)
        self.run("scontrol", "update", f"nodename=n{k}", "state=down", "reason=failed")

    def slurmd_kill(self, k: int) -> None:
        """Only the daemon of node k dies; its jobs' processes run on."""
        self._kill(f"n{k}", only="slurmd")

    def node_start(self, k: int) -> None:
        """Start the daemon of node k; where a controller runs, wait until the node has reported to it."""
        if self._slurmd(k):
            raise LabError(f"node n{k} runs already")
        began = int(time.time())
        child = self._slurmd_start(k)
        if self._owned("slurmctld"):
            self._wait(f"n{k}", child, lambda: self._reported(k, began), 20)

    def controller_kill(self) -> None:
        """Kill the controller: jobs run on, clients get no answer, the last five seconds may be forgotten.

        A job whose start is forgotten is started once more, and its node is drained; see `wait_noted`.
        """
        self._kill("slurmctld")

    def controller_start(self) -> None:
        """Start the controller and wait until it answers."""
        if self._owned("slurmctld"):
            raise LabError("the controller runs already")
        child = self._start("slurmctld", "slurmctld", "-D")
        self._wait("slurmctld", child, lambda: " is UP" in self.run("scontrol", "ping", check=False), 15)

    # ---------------------------------------------------------------- questions

    def run(self, *command: str, check: bool = True, timeout: float = 20) -> str:
        """Run a client of this lab and return its output; LabError on an exit code other than 0."""
        try:
            done = subprocess.run(
                command, env=self._environ(), capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{' '.join(command)}: no answer within {timeout:g} s") from None
        if check and done.returncode != 0:
            raise LabError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def jobs(self, every: bool = False) -> dict[str, str]:
        """Return the state of each job that waits or runs, array tasks singly; ended ones too if `every`."""
        command = ["squeue", "-h", "-a", "-r", "-o", "%i|%T", *["--states=all"] * every]
        return dict(line.split("|") for line in self.run(*command).split())

    def node_states(self) -> dict[str, str]:
        """Return the state of each node as sinfo says it; a `*` at its end: the node does not answer."""
        command = ("sinfo", "-h", "-N", "-p", "main", "-o", "%N|%T")
        return dict(line.split("|") for line in self.run(*command).split())

    def wait_idle(self, timeout: float = 30) -> None:
        """Wait until no job is left and all nodes are idle; LabError after `timeout` seconds."""
        self._wait("slurmctld", None, lambda: not self._unrest(), timeout)

    def wait_noted(self, timeout: float = 15) -> None:
        """Wait until the controller's files tell of the start of every job that runs now.

        It writes them after a change, and not within five seconds of the last time. So a change is made, and
        the next file waited for: its writing may have begun before the change, but not before the starts.
        """
        kept, jobs = self.folder / "state" / "job_state", list(self.jobs())
        if not jobs:
            raise LabError("no job runs whose start could be noted")
        before = kept.stat().st_mtime_ns if kept.exists() else 0
        self.run("scontrol", "update", f"jobid={jobs[0]}", "comment=noted")
        self._wait("slurmctld", None, lambda: kept.exists() and kept.stat().st_mtime_ns != before, timeout)

    def log_tail(self, name: str, lines: int = 15) -> str:
        """Return the end of what a daemon wrote: slurmctld, n1, n2, ..., munged, slurmdbd or mariadbd."""
        path = self.folder / "log" / f"{name}.out"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    # ---------------------------------------------------------------- daemons

    def _start(self, name: str, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        mark = {"LAB_MARK": self.settings.mark_of(name)}
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                env=self._environ() | mark | variables,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def _slurmd_start(self, k: int) -> subprocess.Popen[bytes]:
        hosts = files.hosts_file(self.folder, self.settings, k)
        script = f"mount --bind {hosts} /etc/hosts && hostname n{k} && exec slurmd -D -N n{k}"
        return self._start(f"n{k}", "unshare", "--mount", "--uts", "sh", "-c", script)

    def _munge_start(self) -> None:
        run = self.folder / "run"
        paths = (f"--socket={run}/munge", f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed")
        own = (f"--key-file={self.folder}/etc/munge.key", f"--log-file={self.folder}/log/munged.log")
        # --force: munged would have the folder's parents closed to others, which /tmp is not.
        child = self._start("munged", "munged", "--foreground", "--force", *paths, *own)
        self._wait("munged", child, lambda: self._succeeds("munge", "--no-input", paths[0]), 10)

    def _accounting_start(self) -> None:
        sock, port = f"--socket={self.folder}/run/mysql", f"--port={self.settings.ports()['database_port']}"
        plain = ("--no-defaults", "--user=root", f"--datadir={self.folder}/mysql")
        new = ("--auth-root-authentication-method=normal", "--skip-test-db")
        self.run("mariadb-install-db", *plain, *new, timeout=60)
        own = (sock, port, "--bind-address=127.0.0.1", f"--pid-file={self.folder}/run/mysql.pid")
        # Nothing here needs to survive a power cut.
        fast = ("--innodb-flush-log-at-trx-commit=0", "--skip-log-bin")
        child = self._start("mariadbd", "mariadbd", *plain, *own, *fast)
        ask = ("mariadb-admin", "--no-defaults", "--user=root", sock, "ping")
        self._wait("mariadbd", child, lambda: self._succeeds(*ask), 30)
        child = self._start("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=f"{self.folder}/run/mysql")
        self._wait("slurmdbd", child, lambda: self._succeeds("sacctmgr", "-n", "list", "cluster"), 20)
        self.run("sacctmgr", "-i", "add", "cluster", "lab")

    # ---------------------------------------------------------------- processes and waiting

    def _all(self) -> range:
        return range(1, self.settings.nodes + 1)

    def _environ(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return own | self.environment() | {"PATH": SEARCH_PATH, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}

    def _mark(self, daemon: str) -> str:
        return self.settings.mark_of(daemon) if daemon else self.settings.mark

    def _owned(self, daemon: str) -> list[int]:
        return processes.owned(self._mark(daemon))

    def _slurmd(self, k: int) -> list[int]:
        return [pid for pid in self._owned(f"n{k}") if processes.program(pid) == "slurmd"]

    def _kill(self, daemon: str, only: str = "") -> None:
        try:
            processes.kill(self._mark(daemon), only)
        except TimeoutError as error:
            raise LabError(str(error)) from None
        for child in self._children:
            child.poll()

    def _succeeds(self, *command: str) -> bool:
        with contextlib.suppress(LabError):
            self.run(*command)
            return True
        return False

    def _unrest(self) -> str:
        """Return what is not idle, in one line; empty if all is."""
        states = {f"n{k}": "absent" for k in self._all()} | self.node_states() | self.jobs()
        return ", ".join(f"{name} {state}" for name, state in states.items() if state != "idle")

    def _is_idle(self, k: int) -> bool:
        return self.node_states().get(f"n{k}") == "idle"

    def _reported(self, k: int, since: int) -> bool:
        words = self.run("scontrol", "-o", "show", "node", f"n{k}").split()
        started = next(word for word in words if word.startswith("SlurmdStartTime=")).partition("=")[2]
        return started.isdigit() and int(started) >= since and "*" not in self.node_states()[f"n{k}"]

    def _wait(
        self, name: str, child: subprocess.Popen[bytes] | None, ready: Callable[[], bool], timeout: float
    ) -> None:
        """Ask again and again whether `ready`, for `timeout` seconds and no longer than `child` lives."""
        deadline = time.monotonic() + timeout
        while not ready():
            ended = child.poll() if child else None
            if ended is not None or time.monotonic() > deadline:
                fact = f"not ready after {timeout:g} s" if ended is None else f"ended with code {ended}"
                rest = "" if child else f" (not idle: {self._unrest()})"
                raise LabError(f"{name}: {fact}{rest}; the end of its log:\n{self.log_tail(name)}")
            time.sleep(0.05)


def main() -> None:
    """Start, stop and show a lab from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("up", "down", "env", "status"))
    parser.add_argument("--folder", required=True, help=f"of the lab, at most {MAX_FOLDER} characters")
    for name, default in (("nodes", 4), ("cpus", 2), ("mem-mb", 4000), ("gpus", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--accounting", action="store_true", help="slurmdbd and MariaDB, for sacct")
    given = vars(parser.parse_args())
    action, lab = given.pop("action"), Lab(**given)
    try:
        if action == "up":
            lab.up()
        elif action == "down":
            lab.down()
        elif not lab.exists():
            raise LabError(f"no lab in {lab.folder}; start one: lab.py up --folder {lab.folder}")
        if action in ("up", "env"):
            print(*(f"export {name}={value}" for name, value in lab.environment().items()), sep="\n")
        elif action == "status":
            print(lab.run("sinfo", "-N", "-l"), lab.run("squeue"), sep="\n", end="")
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
