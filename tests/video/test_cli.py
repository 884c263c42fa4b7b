"""The command line."""

import itertools
import sys
from fractions import Fraction

import pytest

from espan.errors import EspanError
from espan.extras import install_command
from espan.video.times import clock, decoding_times, parse_time

av = pytest.importorskip("av", reason="PyAV is not installed: the extra `video`")

from tests.video.clips import frame_times, make_clip  # noqa: E402


@pytest.fixture
def espan(capsys, monkeypatch):
    """A function that runs a command in this process: status, output, errors."""

    def espan(*arguments):
        from espan.cli import main

        monkeypatch.setattr(sys, "argv", ["espan", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return espan


def test_command(tmp_path, espan):
    path = make_clip(tmp_path / "a.mkv", options={"x264-params": "tff=1"})
    status, out, err = espan(
        "video", path, tmp_path / "b.mkv", "--from", "0.1", "--to", "0:00.3", "--crf", "30",
        "--device", "cpu",
    )  # fmt: skip
    assert status == 0
    assert out.startswith(f"{tmp_path / 'b.mkv'}  192x128  5 frames in ")
    assert out.rstrip().endswith("(libx264; cpu on cpu)") or "reference on cpu" in out
    assert err == (
        f"espan: note: {path}: the video is interlaced, but is upscaled as if it was not; "
        "deinterlace it first\n"
    )
    assert len(frame_times(tmp_path / "b.mkv")) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.mkv", "b.mkv"], "espan: error: no such file: none.mkv"),
        (["a.mkv", "b.avi"], "espan: error: b.avi: the name must end in .mkv, .mp4"),
        (["a.mkv", "b.mkv", "--from", "1h"], "espan: error: --from '1h': expected a time such as"),
        (["a.mkv", "b.mkv", "--weights", "none"], "espan: error: "),
        (["a.mkv", "w.mkv", "--weights", "w.mkv", "--overwrite"], "w.mkv is an input of this com"),
        (["a.mkv", "b.mkv", "--backend", "cuda", "--device", "cpu"], "espan: error: "),
    ],
)
def test_errors_are_one_sentence(tmp_path, espan, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "a.mkv", frames=2)
    (tmp_path / "w.mkv").write_bytes(b"weights")
    status, _, err = espan("video", *arguments)
    assert status == 1
    assert message in err
    assert err.count("\n") == 1


def test_without_pyav(tmp_path, espan, monkeypatch):
    """It says what to install."""
    import espan.video.run as imported

    monkeypatch.delitem(sys.modules, imported.__name__)
    monkeypatch.delattr(sys.modules[imported.__package__], "run")
    monkeypatch.setitem(sys.modules, "av", None)
    status, _, err = espan("video", tmp_path / "a.mkv", tmp_path / "b.mkv")
    assert status == 1
    assert err.startswith("espan: error: video needs an additional package (")
    assert f"install it with {install_command('video')}, with Python" in err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("75.5", 75.5), ("1:15.5", 75.5), ("0:01:15.500", 75.5), ("10:00:00", 36000)],
)
def test_times(text, seconds):
    assert parse_time(text, "--from") == Fraction(seconds)


@pytest.mark.parametrize("text", ["", "-1", "1h", "1:", ":1", "1:2:3:4", "1e3", ".5", "٣"])
def test_what_is_not_a_time(text):
    with pytest.raises(EspanError, match=r"--to .*: expected a time such as 75.5, 1:15.5 or"):
        parse_time(text, "--to")


def test_clock():
    times = [Fraction(0), Fraction("75.5"), Fraction(3600), Fraction("59.9996"), Fraction(-1, 2)]
    assert [clock(time) for time in times] == [
        "0:00:00.000", "0:01:15.500", "1:00:00.000", "0:01:00.000", "-0:00:00.500",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "decoded"),
    [
        ([], []),
        ([5], [5]),
        ([0, 1, 2], [0, 1, 2]),
        ([0, 4, 2, 1, 3], [-2, -1, 0, 1, 2]),
        ([100, 300, 200], [0, 100, 200]),
        ([0, 30, 10, 10_000, 2000], [-10, 0, 10, 30, 2000]),
    ],
)
def test_decoding_times(shown, decoded):
    assert decoding_times(shown) == decoded
    assert all(a <= b for a, b in zip(decoded, shown, strict=True))


def test_decoding_times_of_an_hour():
    """Of B-frame pyramids at a variable rate: they increase, and none is after its frame."""
    import numpy as np

    times = np.random.default_rng(0).integers(1, 9000, 107892).cumsum().tolist()
    shown = []
    for i in range(0, len(times), 6):
        group = times[i : i + 6]
        shown += [group[j] for j in (5, 2, 0, 1, 3, 4) if j < len(group)]
    decoded = decoding_times(shown)
    assert all(a < b for a, b in itertools.pairwise(decoded))
    assert all(a <= b for a, b in zip(decoded, shown, strict=True))
