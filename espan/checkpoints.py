"""Weight files: reading the layouts in use, writing espan's own format.

A file in espan's format is a safetensors file with the tensors of a plain `Network` and one JSON
text in the metadata: format version, architecture (including scale and normalisation), input and
output range, and a record of how the weights were made.
"""

from __future__ import annotations

import difflib
import json
import os
import pickle
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from espan.checkpoint_layouts import check_finite, from_state_dict, unwrap
from espan.errors import CheckpointError, EspanError
from espan.files import atomic_write, json_text
from espan.models import Architecture, Network, Normalization

FORMAT = 1
DEFAULT = "espan_x4"
_RANGE = [0.0, 1.0]  # of input and output
# What torch.save writes: a zip archive or, before PyTorch 1.6, a bare pickle.
_PICKLED = (b"PK\x03\x04", b"\x80")


def bundled() -> dict[str, Path]:
    """The weights that come with the package, by name."""
    folder = Path(str(resources.files("espan") / "weights"))
    return {p.stem: p for p in sorted(folder.glob("*.safetensors"))}


def load(
    weights: str | os.PathLike[str] = DEFAULT,
    *,
    normalization: Normalization | str | None = "auto",
) -> Network:
    """Read weights of the SPAN family and return the plain network, ready for inference.

    Reads espan's own safetensors files, the official ESPAN and SPAN files, and SPAN in training
    form (its branches are merged), under any keys and prefixes that training code adds (`params`,
    `state_dict`, `module.`, `_orig_mod.`, ...).  If a file has both raw weights and their average
    (`params_ema`, `model_ema`, `AveragedModel`, ...), the average is used.  Other modules in the
    file, such as a loss, are left out.  ``record["taken from"]`` lists what was used and left out.

    Args:
        weights: a file, or the name of bundled weights (`bundled()`).
        normalization: `"auto"` takes what the file or its layout says.  Some SPAN files trained
            with BasicSR after January 2024 need ``Normalization((0.5, 0.5, 0.5), 1.0)``, which
            their keys do not show.  None switches normalisation off.

    Returns:
        An fp32 `Network` on the CPU, in eval mode, whose parameters require no gradient.  Its
        `record` is that of the file, or says where in the file the weights were.

    Raises:
        CheckpointError: the file cannot be read, is damaged, is not recognised, holds several
            networks, or has tensors missing or left over.  Pickled files are only ever read with
            ``weights_only=True``.
    """
    path = _find(weights)
    try:
        architecture, state, record = _read(path)
        check_finite(state)
    except EspanError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if normalization != "auto":
        if isinstance(normalization, str):
            raise CheckpointError(
                f"normalization must be 'auto', None or a Normalization, got {normalization!r}"
            )
        architecture = architecture.replace(normalization=normalization)
    network = Network(architecture)
    _check_state(path, network, state)
    network.load_state_dict(state)
    network.record = record
    return network.eval().requires_grad_(False)


def save(network: Network, path: str | os.PathLike[str], *, record: dict[str, Any]) -> None:
    """Write a plain network in espan's format, whole or not at all.

    Args:
        network: without re-parameterised convolutions (`espan.reparameterize.collapse` first).
        path: should end in .safetensors.
        record: how the weights were made, as JSON data.

    Raises:
        CheckpointError: a network in training form, or weights that are not finite.
        OSError: the file cannot be written; an existing file remains unchanged.
    """
    state = {k: v.detach().float().cpu().contiguous() for k, v in network.state_dict().items()}
    if set(state) != set(Network(network.architecture).state_dict()):
        raise CheckpointError(
            "save: the network is in training form; espan.reparameterize.collapse it first"
        )
    check_finite(state)
    about = {
        "format": FORMAT,
        "architecture": network.architecture.to_dict(),
        "range": _RANGE,
        "record": record,
    }
    # Not save_file: it ignores the umask and makes files that only their owner can read.
    data = safetensors.torch.save(state, metadata={"espan": json_text(about)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _find(weights: str | os.PathLike[str]) -> Path:
    names = bundled()
    if isinstance(weights, str) and weights in names:
        return names[weights]
    path = Path(weights)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; a weight file is expected")
    if not path.exists():
        near = difflib.get_close_matches(str(weights), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CheckpointError(
            f"{weights} is neither a file nor the name of bundled weights "
            f"({', '.join(names)}){hint}"
        )
    return path


def _read(path: Path) -> tuple[Architecture, dict[str, Tensor], dict[str, Any]]:
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise CheckpointError("the file is empty")
    if start[8:9] == b"{":  # a safetensors file is the length of its JSON header, then the header
        return _read_safetensors(path)
    if start.startswith(_PICKLED):
        return _read_foreign(_read_pickle(path))
    kind = "neither a PyTorch nor a safetensors file"
    raise _not_weights("an ONNX model" if path.suffix.lower() == ".onnx" else kind)


def _read_foreign(data: object) -> tuple[Architecture, dict[str, Tensor], dict[str, Any]]:
    state, where = unwrap(data)
    return (*from_state_dict(state), {"taken from": where} if where else {})


def _read_safetensors(path: Path) -> tuple[Architecture, dict[str, Tensor], dict[str, Any]]:
    data = path.read_bytes()  # safe_open only accepts names in UTF-8
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"is a damaged or truncated safetensors file ({error})") from error
    except KeyError as error:
        raise CheckpointError(f"has tensors of a type that is not supported: {error}") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = header.get("__metadata__", {}).get("espan")
    if text is None:
        return _read_foreign(state)
    try:
        about = json.loads(text)
        if about["format"] != FORMAT or about["range"] != _RANGE:
            raise CheckpointError(
                f"has format {about['format']} and range {about['range']}; this version of espan "
                f"reads format {FORMAT} with range {_RANGE}"
            )
        return Architecture.from_dict(about["architecture"]), state, dict(about["record"])
    except EspanError:
        raise
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"its espan metadata is damaged ({error!r})") from error


def _read_pickle(path: Path) -> object:
    with path.open("rb") as file:  # errors of the system name the file
        if kind := _other_archive(file):
            raise _not_weights(kind)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "holds more than tensors and plain containers, or is damaged; it was not unpickled, "
            "because a pickle can run code; save only its state dict"
        ) from error
    except (
        RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError
    ) as error:  # fmt: skip
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"is a damaged or truncated PyTorch file ({reason[0] if reason else repr(error)})"
        ) from error


def _not_weights(kind: str) -> CheckpointError:
    return CheckpointError(
        f"is {kind}; espan reads weights, i.e. a state dict in a .pth or .safetensors file"
    )


def _other_archive(file: BinaryIO) -> str | None:
    """What else a zip archive of PyTorch is, if it is not a file of `torch.save`."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return None
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return "a TorchScript archive"
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        return "a program of torch.export"
    return None if "data.pkl" in names else "a zip archive without weights of PyTorch"


def _check_state(path: Path, network: Network, state: dict[str, Tensor]) -> None:
    """Raise CheckpointError for wrong keys or shapes, shorter than `load_state_dict` would."""
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    problems = [f"lacks {k!r}" for k in expected.keys() - found.keys()]
    problems += [f"has {k!r}, which the architecture does not" for k in found.keys() - expected]
    problems += [
        f"{k!r} is {found[k]} where {expected[k]} is expected"
        for k in expected.keys() & found.keys()
        if found[k] != expected[k]
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{path}: {'; '.join(sorted(problems)[:3])}{more}")
