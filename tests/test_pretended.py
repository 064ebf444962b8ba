"""Everything on a device that is not the CPU, without one: see `pretended`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pretended import QUICK
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch takes no device from Python",
)
HERE = Path(__file__).parent
EDITS = [f"{method}:float32" for method in QUICK]
COMPARISONS = ["icl,grace:float16", "ultraedit,mend:float32"]


@pytest.fixture(scope="module")
def ended() -> str:
    """What the jobs say, two processes of them side by side."""
    given = dict(os.environ, OMP_NUM_THREADS="1")
    half = len(EDITS) // 2
    running = [
        subprocess.Popen(
            [sys.executable, str(HERE / "pretended.py"), *jobs],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=given,
        )
        for jobs in ([*EDITS[:half], COMPARISONS[0]], [*EDITS[half:], COMPARISONS[1]])
    ]
    return "\n".join(process.communicate()[0] for process in running)


@pytest.mark.parametrize("job", [*EDITS, *COMPARISONS])
def test_on_a_device_of_its_own(ended: str, job: str) -> None:
    assert f"ended {job}" in ended.splitlines(), ended[-6000:]


def test_the_device_refuses_what_a_gpu_refuses(ended: str) -> None:
    assert "ended refusals" in ended.splitlines(), ended[-6000:]
