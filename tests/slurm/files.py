"""What a lab was asked to be, and the configuration files that make Slurm's daemons so."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import socket
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

TEMPLATES = Path(__file__).parent
# The longest socket is FOLDER/spool/nNN/nNN_JOB.STEP, and a unix socket's path has 107 bytes at most.
MAX_FOLDER = 60
FOLDERS = ("etc", "log", "run", "state", "spool")
# The daemons' ports, counted from the lab's first one; the nodes' come after them.
PORTS = ("controller_port", "spare_port", "accounting_port", "database_port", "first_node_port")
# A connection to slurmdbd ignores AuthInfo; its munge socket is named in the password.
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/run/munge"""


@dataclass(frozen=True)
class Settings:
    """The shape of a lab; kept in its folder, so that another process can take it down."""

    nodes: int
    cpus: int
    mem_mb: int
    gpus: int
    accounting: bool
    max_array_size: int
    base_port: int
    extra_conf: dict[str, str]
    mark: str

    def mark_of(self, daemon: str) -> str:
        """Return the mark of one daemon or one node; it ends with a dot, so that n1 is not found in n10."""
        return f"{self.mark}.{daemon}."

    def ports(self) -> dict[str, int]:
        """Return the port of each daemon by its name in the templates."""
        ports = {name: self.base_port + offset for offset, name in enumerate(PORTS)}
        return ports | {"last_node_port": ports["first_node_port"] + self.nodes - 1}


def kept_in(folder: Path) -> Path:
    """Return the file that makes a folder a lab's."""
    return folder / "lab.json"


def read(folder: Path) -> Settings:
    """Return the settings of the lab in this folder."""
    return Settings(**json.loads(kept_in(folder).read_text()))


def hosts_file(folder: Path, settings: Settings, k: int) -> Path:
    """Return the file mounted as /etc/hosts of node k; its name marks the node's processes."""
    return folder / "etc" / f"{settings.mark_of(f'n{k}')}hosts"


def write(folder: Path, settings: Settings) -> None:
    """Make the folder and all that the daemons read; settings first, so that a crash leaves a lab."""
    folder.mkdir(parents=True, exist_ok=True)
    kept_in(folder).write_text(json.dumps(asdict(settings)))
    for name in FOLDERS:
        (folder / name).mkdir()
    key = folder / "etc" / "munge.key"
    key.touch(0o400)
    key.write_bytes(secrets.token_bytes(128))
    host = socket.gethostname().split(".")[0]
    names = "".join(f"127.0.0.1 n{k}\n" for k in range(1, settings.nodes + 1))
    for k in range(1, settings.nodes + 1):
        (folder / "spool" / f"n{k}").mkdir()
        hosts_file(folder, settings, k).write_text(f"127.0.0.1 localhost {host}\n{names}")
    values = {**asdict(settings), **settings.ports(), "folder": folder, "host": host}
    values |= {"accounting": "", "gres_types": "", "gres": ""}
    if settings.accounting:
        values["accounting"] = ACCOUNTING.format(port=values["accounting_port"], folder=folder)
        dbd = folder / "etc" / "slurmdbd.conf"
        dbd.touch(0o600)
        dbd.write_text(Template((TEMPLATES / "slurmdbd.conf.in").read_text()).substitute(values))
    if settings.gpus:
        values |= {"gres_types": "GresTypes=gpu", "gres": f"Gres=gpu:{settings.gpus}"}
        _write_gpus(folder, settings)
    text = Template((TEMPLATES / "slurm.conf.in").read_text()).substitute(values)
    (folder / "etc" / "slurm.conf").write_text(with_lines(text, settings.extra_conf))


def _write_gpus(folder: Path, settings: Settings) -> None:
    # Slurm sets CUDA_VISIBLE_DEVICES only for character devices; these are copies of /dev/null.
    for i in range(settings.gpus):
        os.mknod(folder / "run" / f"gpu{i}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    devices = f"{folder}/run/gpu[0-{settings.gpus - 1}]"
    line = f"NodeName=n[1-{settings.nodes}] Name=gpu File={devices}\n"
    (folder / "etc" / "gres.conf").write_text(line)


def with_lines(text: str, changes: dict[str, str]) -> str:
    """Return a slurm.conf in which each key has the value asked for, in its own line or a new one."""
    lines = text.splitlines()
    for key, value in changes.items():
        lines = [line for line in lines if line.partition("=")[0].lower() != key.lower()]
        lines.append(f"{key}={value}")
    return "\n".join(lines) + "\n"


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive ports that are free now, below those handed out to clients."""
    for _ in range(200):
        first = random.SystemRandom().randrange(15000, 32000 - count)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("", port))
            return first
    raise OSError(f"no {count} consecutive free ports found in 15000-32000")
