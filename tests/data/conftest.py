"""Small videos, made on the spot, whose frames tell their number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from tests.support.numbered_frames import HEIGHT, WIDTH, numbered


@pytest.fixture
def encode(tmp_path: Path) -> Callable[..., Path]:
    """encode("name.mp4", 60, codec="libx264", g="10"): a video of numbered frames in tmp_path."""

    def write(
        name: str,
        count: int = 60,
        codec: str = "libx264",
        height: int = HEIGHT,
        width: int = WIDTH,
        container: dict[str, str] | None = None,
        **options: str,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options=container or {}) as out:
            stream: Any = out.add_stream(codec, rate=25, options=options)
            if codec != "libx264":  # the others would blur the brightness at their default rate
                stream.bit_rate = 4_000_000
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(numbered(number, height, width), format="rgb24")
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return path

    return write
