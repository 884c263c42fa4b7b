"""A pytest plugin that ends the process as soon as pytest has written its reports.

After torch.compile, Python may wait at exit for minutes for Inductor's compile workers.  All
reports have been written by then, so nothing is lost.  Workers of pytest-xdist are not affected.
"""

import os
import sys

import pytest

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
