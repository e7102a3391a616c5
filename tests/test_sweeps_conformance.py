"""The executor of this machine does what every executor must."""

from __future__ import annotations

from typing import Any

import pytest
from conformance import Conformance, Executor, Mistake


class Local(Executor):
    """Workers on this machine; `run` waits for them."""

    name, detached = "local", False
    mistakes = (
        Mistake("did you mean 'threads'", change=("threads =", "thread =")),
        Mistake("did you mean 'slurm'", args=("--executor", "slrm")),
        Mistake("--then needs --executor slurm", args=("--then", "fit")),
        Mistake("--slots", args=("--slots", "0")),
        Mistake("more than --max-flops", args=("--max-flops", "1e3")),
        Mistake("did you mean 'synthetic'", change=('"synthetic"', '"synthetc"')),
    )

    def settings(self, at_once: int) -> dict[str, Any]:
        return {}

    def options(self, at_once: int) -> list[str]:
        return ["--slots", str(at_once)]

    def jobs(self) -> dict[str, str]:
        return {}


@pytest.mark.slow
class TestLocal(Conformance):
    @pytest.fixture
    def executor(self) -> Local:
        return Local()
