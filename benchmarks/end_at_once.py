"""A pytest plugin that ends the process as soon as pytest has written its reports.

After torch.compile, Python may wait at exit for minutes for Inductor's compile workers.  All
reports have been written by then, so nothing is lost.  Workers of pytest-xdist are not affected.

On SIGUSR1, every process prints the stacks of its threads.  benchmarks/gpu.py sends it at a time
limit, to show what did not end.
"""

import faulthandler
import os
import signal
import sys

import pytest

# The stderr of the process, before pytest captures it.
faulthandler.register(signal.SIGUSR1, file=os.fdopen(os.dup(2), "w"), all_threads=True)
_status = 0


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Store the exit status last, because plugins may change it."""
    global _status
    _status = int(session.exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Exit in the last hook that pytest calls."""
    if not hasattr(config, "workerinput"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status)
