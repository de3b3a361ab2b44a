"""What is declared too large is refused in one line, before memory is taken for it."""

import io
import os
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from refvt.data import AnnotatedVideos, MovingDigits, read_frames
from refvt.limits import check_frames, check_request, check_unpacked, machine_memory, most_pixels
from refvt.model.config import HaltingVTConfig
from refvt.model.haltingvt import HaltingVT

SMALL = {"image_size": (32, 32), "patch_size": 8, "num_frames": 2, "width": 16, "num_heads": 2, "num_classes": 5}


def gif(side):
    frames = [Image.fromarray(np.full((48, 64), 8 * i, np.uint8)) for i in range(20)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    content = bytearray(out.getvalue())
    content[6:10] = struct.pack("<HH", side, side)
    return bytes(content)


def png(side):
    """A PNG that declares side × side pixels and holds a few compressed zeros."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def webp(side):
    frames = [Image.fromarray(np.full((side, side, 3), i, np.uint8)) for i in range(2)]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:] * 7, lossless=True)
    return out.getvalue()


# a child may take 600 MB beyond what it has after its imports; then memory would end
CHILD = """
import resource, sys
from refvt.data import read_frames
import numpy, PIL.Image, av, warnings
warnings.simplefilter("ignore")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_frames(sys.argv[1], 8, 1)
except ValueError as error:
    print(str(error)[:500])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux tells it")
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.gif", gif(6000)), ("b.gif", gif(60000)), ("c.gif", gif(2600)), ("d.webp", webp(3000)), ("e", png(9000))],
    ids=["gif", "gif-huge", "gif-above-the-floor", "webp", "png-folder"],
)
def test_a_small_file_of_large_pictures_takes_no_memory(tmp_path, name, content):
    path = tmp_path / name
    if "." in name:
        path.write_bytes(content)
    else:
        path.mkdir()
        for number in range(8):
            (path / f"{number}.png").write_bytes(content)
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True)
    said, grown = done.stdout.strip().rsplit("\n", 1)
    assert str(path) in said
    assert "expected" in said
    assert int(grown) < 100


def test_a_large_file_may_hold_large_pictures():
    check_frames("it", 8, 1920, 1080, 1000)
    check_frames("it", 8, 7680, 4320, 1 << 20)
    with pytest.raises(ValueError, match=r"it: expected at most \d+ pixels in each of 8 frames .*, got 7680×4320"):
        check_frames("it", 8, 7680, 4320, 1000)
    assert most_pixels(16, 0) * 2 == pytest.approx(most_pixels(8, 0), rel=1e-3)
    check_unpacked("it", 1 << 26, 0)
    with pytest.raises(ValueError, match="it unpack to 67108865 bytes: expected at most 67108864 from a file of 0"):
        check_unpacked("it", (1 << 26) + 1, 0)
    check_request("it", [(10,)], 4)
    with pytest.raises(ValueError, match=r"it: expected at most the .* GiB of this machine's memory, got"):
        check_request("it", [(machine_memory(),), (2,)], 1)


def test_archives_that_unpack_to_gigabytes_are_refused(tmp_path):
    import refvt

    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            with archive.open(f"a{number}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "<f8", "fortran_order": False, "shape": (1 << 23,)}
                )
                member.write(bytes(1 << 26))
    with pytest.raises(ValueError, match=r"bomb\.npz: its members unpack to \d+ bytes: expected at most"):
        refvt.load(path, HaltingVTConfig(**SMALL), backend="reference")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 2**31}, "num_frames: expected 1 to 1000000, got 2147483648"),
        ({"depth": 10**9}, "depth: expected 1 to 1000000"),
        ({"width": 10**30}, "width: expected 1 to 1000000"),
        ({"mlp_ratio": 1e308}, "mlp_ratio: expected 1/width to"),
        ({"mlp_ratio": 10**400}, "mlp_ratio: expected a finite number"),
        ({"image_size": (10**9, 10**9)}, "image_size: expected"),
        ({"num_classes": 10**6, "width": 10**6}, "config: its parameters: expected at most"),
        ({"width": 10**6}, "config: its parameters: expected at most"),
    ],
)
def test_a_configuration_beyond_all_measure_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        HaltingVT(HaltingVTConfig(**{**SMALL, **changes}), backend="reference")


@pytest.mark.parametrize("changes", [{"clips": 99999999999}, {"clutter": 2**31}, {"frames": 10**12}, {"size": 10**7}])
def test_moving_digits_beyond_the_memory_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))}.*: expected at most the .* of this machine's memory"):
        MovingDigits("test", **{"clips": 4096, **changes})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_not_waited_for(tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "frames"
    os.mkfifo(pipe)
    folder.mkdir()
    os.mkfifo(folder / "0.png")
    os.mkfifo(folder / "1.png")
    config = HaltingVTConfig(**SMALL)
    for read in (
        lambda: AnnotatedVideos(pipe, tmp_path, config),
        lambda: read_frames(pipe, 2),
        lambda: read_frames(folder, 2),
    ):
        with pytest.raises(ValueError, match="got a device or pipe"):
            read()


def test_tags_of_another_encoding_do_not_hide_a_healthy_video(tmp_path):
    import av

    path = tmp_path / "tags.avi"
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "Caf@ cr@me"
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(8):
            image = np.full((48, 64, 3), 10 * i, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    content = path.read_bytes()
    assert b"Caf@ cr@me" in content
    for wrong in (b"\xe9", b"\xff", b"\x80", b"\xc3"):
        path.write_bytes(content.replace(b"Caf@ cr@me", b"Caf%b cr%bme" % (wrong, wrong)))
        assert read_frames(path, 4).num_available == 8
