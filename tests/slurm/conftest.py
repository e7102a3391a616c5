"""A running Slurm for each test of this folder; all of them are marked `slurm` and `slow`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.lab import FOREIGN, Lab, why_not

HERE = Path(__file__).parent
# Short, for unix sockets. By the number of the process that owns the lab a later one sees whether it lives.
PREFIX = "sl-{pid}-"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("slurm")
            item.add_marker("slow")
            # Real time limits have whole minutes, and Slurm looks at most things every half a minute.
            item.add_marker(pytest.mark.timeout(900))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    # Not in a fixture: skips from this one line are reported as one line, not as one for each test.
    if reason := why_not():
        pytest.skip(f"real Slurm tests skipped: {reason}")


def remove_orphans(parent: Path) -> None:
    """Take down the labs of test processes that were killed."""
    for kept in parent.glob(f"{PREFIX.format(pid='*')}*/lab.json"):
        owner = kept.parent.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            Lab(kept.parent).down()


@pytest.fixture(scope="session")
def slurm_lab() -> Iterator[Lab]:
    """One lab of four nodes with two processors each, for all tests of the session."""
    parent = Path("/tmp")
    remove_orphans(parent)
    with Lab(tempfile.mkdtemp(prefix=PREFIX.format(pid=os.getpid()), dir=parent)) as lab:
        yield lab


@pytest.fixture
def slurm(slurm_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The lab with all nodes idle and no job, whatever the last test did; clients find it by SLURM_CONF."""
    slurm_lab.restore()
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)
    for name, value in slurm_lab.environment().items():
        monkeypatch.setenv(name, value)
    return slurm_lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the end of the controller's log under a failed test."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("slurm")
    if report.failed and isinstance(lab, Lab):
        report.sections.append(("slurmctld", lab.log_tail("slurmctld", 40)))
    return report
