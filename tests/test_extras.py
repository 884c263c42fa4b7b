"""Packages for other programs are imported only where they are used; errors say what to install."""

from importlib import metadata

import pytest

from espan.extras import install_command
from tests.test_sources import imported_at_once, sources

PACKAGES = {"av", "onnx", "onnxruntime", "spandrel", "vapoursynth"}
USERS = {"espan.onnx_graph", "espan.spandrel", "espan.vapoursynth"}
USERS |= {
    f"espan.video.{name}"
    for name in ("decode", "encode", "join", "pixel_formats", "planes", "run", "source")
}


def test_extras_are_imported_only_where_they_are_used() -> None:
    """No other module imports such a package, or a module that does, before it is needed."""
    users = set()
    for module, tree in sources("espan").items():
        names = imported_at_once(tree)
        assert module in USERS or not names & USERS, module
        if {name.partition(".")[0] for name in names} & PACKAGES:
            users.add(module)
    assert users == USERS


REQUIREMENTS = [
    "torch>=2.10",
    'missing-one; extra == "train"',
    'missing-two>=18; python_version >= "3.10" and extra == "train"',
    'pytest; extra == "train"',
    'of-an-old-python; python_version < "3.10" and extra == "train"',
    'of-another-extra; extra == "video"',
    "pytest; extra == 'test'",
]


def test_the_command_that_installs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what is missing: all, if the packages are there and cannot be imported."""
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIREMENTS)
    assert install_command("train") == '`pip install missing-one "missing-two>=18"`'
    assert install_command("video") == "`pip install of-another-extra`"
    assert install_command("test") == "`pip install pytest`"


def test_the_command_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    expected = '`pip install --no-build-isolation -e ".[onnx]"` in the source folder of espan'
    for requires in (absent, lambda name: None, lambda name: REQUIREMENTS):
        monkeypatch.setattr(metadata, "requires", requires)
        assert install_command("onnx") == expected
