"""Small synthetic video files, made when a test runs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

QUIET = {"libx265": {"x265-params": "log-level=error"}}


def picture(i: int, width: int, height: int) -> np.ndarray:
    """A smooth picture that moves with `i`, (H, W, 3) bytes."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x + i * k) / (5 + k)) + np.cos((y - i) / (7 + k)) for k in (1, 2, 3)]
    return (127 + 55 * np.stack(waves, axis=-1)).astype(np.uint8)


def make_clip(
    path: Path,
    *,
    frames: int = 12,
    width: int = 48,
    height: int = 32,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = 25,
    times: list[int] | None = None,
    time_base: Fraction | None = None,
    aspect: Fraction | None = None,
    rotation: float | None = None,
    colours: tuple[int, int, int, int] = (2, 2, 2, 0),
    audio: tuple[str, int, float] | None = None,
    subtitle: bool = False,
    attachment: bool = False,
    chapters: list[tuple[float, float, str]] = (),
    options: dict[str, str] | None = None,
    audio_offset: int = 0,
) -> Path:
    """Write a file.

    Args:
        times, time_base: of the frames; default: at a constant rate.
        colours: primaries, transfer, matrix and range, in FFmpeg's numbers.
        audio: codec, sample rate and seconds of a tone.
        audio_offset: added to the times of the audio, in samples.
    """
    with av.open(str(path), "w") as container:
        unit = time_base or 1 / Fraction(rate)
        video = container.add_stream(
            codec,
            rate=rate,
            width=width,
            height=height,
            pix_fmt=pix_fmt,
            time_base=unit,
            options={**QUIET.get(codec, {}), **(options or {})},
        )
        context = video.codec_context
        context.color_primaries, context.color_trc, context.colorspace = colours[:3]
        context.color_range = colours[3]
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if rotation is not None:
            video.set_display_rotation(rotation)
        video.metadata["title"] = "moving waves"
        sound = None
        if audio is not None:
            sound = container.add_stream(audio[0], rate=audio[1], layout="mono")
            sound.metadata["language"] = "fra"
            sound.disposition = 1  # the default
        words = container.add_mux_stream("subrip") if subtitle else None
        if words is not None:
            words.time_base = Fraction(1, 1000)
        if attachment:
            container.add_attachment("font.ttf", "application/x-truetype-font", b"not a font")
        container.set_chapters(
            [
                {
                    "id": i + 1,
                    "start": round(start * 1000),
                    "end": round(end * 1000),
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": title},
                }
                for i, (start, end, title) in enumerate(chapters)
            ]
        )
        container.metadata["title"] = "a test"
        if sound is not None:
            _tone(container, sound, *audio[1:], audio_offset)
        if words is not None:
            for i in range(2):
                packet = av.Packet(f"line {i}".encode())
                packet.stream, packet.time_base = words, Fraction(1, 1000)
                packet.pts = packet.dts = 100 + 200 * i
                packet.duration = 150
                container.mux(packet)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, width, height), "rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = (i if times is None else times[i]), unit
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


def _tone(container, stream, rate: int, seconds: float, offset: int) -> None:
    done, size = 0, 1024
    form = stream.codec_context.format.name
    kind = np.float32 if "flt" in form else np.int16
    while done < rate * seconds:
        wave = np.sin(np.arange(done, done + size) / 9)
        samples = (wave * (1 if kind is np.float32 else 9000)).astype(kind)
        frame = av.AudioFrame.from_ndarray(samples[None], format=form, layout="mono")
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = done + offset
        container.mux(stream.encode(frame))
        done += size
    container.mux(stream.encode())


def packets(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    """The time and the content of every packet of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]


def frame_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def stretch_audio(path: Path, target: Path, *, seconds: int, every: int) -> Path:
    """Repeat the audio of a file, each `every`-th packet of it, for so many seconds."""
    with av.open(str(path)) as source, av.open(str(target), "w") as result:
        copies = {s.index: result.add_stream_from_template(s, opaque=True) for s in source.streams}
        sound = source.streams.audio[0]
        found = [packet for packet in source.demux() if packet.size]
        heard = [packet for packet in found if packet.stream is sound]
        step = heard[1].pts - heard[0].pts
        count = int(seconds / (step * sound.time_base)) + 1
        for packet in found:
            if packet.stream is not sound:
                packet.stream = copies[packet.stream_index]
                result.mux(packet)
        for i in range(0, count, every):
            packet = av.Packet(bytes(heard[i % len(heard)]))
            packet.pts = packet.dts = heard[0].pts + i * step
            packet.duration, packet.time_base = step, sound.time_base
            packet.stream = copies[sound.index]
            result.mux(packet)
    return target
