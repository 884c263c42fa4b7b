"""How to install the packages that only some parts of espan need."""

import re
import sys
from importlib import metadata


def install_command(extra: str) -> str:
    """The command, for a message, that installs what is missing of an extra of pyproject.toml.

    It does not name the extra, because pip would build and install espan itself once more.
    """
    try:
        requirements = metadata.requires("espan") or []
    except metadata.PackageNotFoundError:  # a source folder that is not installed
        requirements = []
    needed = [r.partition(";")[0].strip() for r in requirements if _is_part_of(r, extra)]
    if not needed:
        return f'`pip install --no-build-isolation -e ".[{extra}]"` in the source folder of espan'
    missing = [package for package in needed if not _is_installed(package)] or needed
    quoted = (
        package if re.fullmatch(r"[\w.-]+", package) else f'"{package}"' for package in missing
    )
    return f"`pip install {' '.join(quoted)}`"


def _is_part_of(requirement: str, extra: str) -> bool:
    """Whether a requirement is for the extra and, if it names a version, for this Python."""
    version = re.search(r"python_version (<|>=) [\"']3\.(\d+)[\"']", requirement)
    return bool(re.search(rf"extra == [\"']{extra}[\"']", requirement)) and (
        version is None or (sys.version_info < (3, int(version[2]))) == (version[1] == "<")
    )


def _is_installed(package: str) -> bool:
    try:
        metadata.distribution(re.split("[<>=!~]", package)[0])
    except metadata.PackageNotFoundError:
        return False
    return True
