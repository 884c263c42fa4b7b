"""A pytest plugin: the process ends as soon as pytest has written its reports.

After torch.compile, Python may wait for minutes at exit for Inductor's compile workers.  By now all
reports are written, so nothing is lost.  The workers of pytest-xdist are left to xdist.
"""

import os
import sys

import pytest

_status = 0


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keeps the status, which a plugin may still have changed."""
    global _status
    _status = int(session.exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The last hook of all."""
    if not hasattr(config, "workerinput"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status)
