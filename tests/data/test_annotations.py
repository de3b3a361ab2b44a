"""Annotation lists of real clips, as frames and as files, with every kind of mistake in them."""

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
import pytest

from refvt.data import (
    AnnotatedVideos,
    ShortVideoWarning,
    UnreadableClipError,
    find_sample_video,
    preprocess,
    rand_augment,
    random_flip,
    random_scale_and_crop,
    read_frames,
    resize_and_crop,
)
from refvt.data.annotations import read_annotations
from refvt.data.clips import normalise
from refvt.data.dataset import MakesTwins

SIZES: dict[str, Any] = {"num_classes": 5, "frames": 4, "image_size": (32, 32)}
NONE = (0, 0.0)  # no RandAugment


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real clips: 'cars' as PNG, 'a bunny 2' as JPEG, 'phone call 3.mp4', and broken ones."""
    folder = tmp_path_factory.mktemp("videos")
    clips = {
        name: read_frames(find_sample_video(f"{name}.mp4"), 24, 1).images[:, ::4, ::4]
        for name in ("bikes", "bigbuckbunny", "carphone_pristine")
    }
    for name, source, suffix in (("cars", "bikes", "png"), ("a bunny 2", "bigbuckbunny", "jpg")):
        (folder / name).mkdir()
        for number, image in enumerate(clips[source], start=1):
            iio.imwrite(folder / name / f"img_{number:05}.{suffix}", image)
    with av.open(str(folder / "phone call 3.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream: Any = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 44, 36, "yuv420p"
        for image in clips["carphone_pristine"]:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        out.mux(stream.encode(None))
    whole = (folder / "phone call 3.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "nothing.mp4").write_bytes(b"")
    (folder / "empty").mkdir()
    return folder


def make_list(root: Path, *lines: str, name: str = "list.txt") -> Path:
    path = root / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_every_form_of_a_line(root: Path) -> None:
    annotations = make_list(
        root, "# MMAction's form", "cars 24 3", "", "  a bunny 2  24 0 ", "phone call 3.mp4\t4", f"{root}/cars 24 1"
    )
    videos, problems = read_annotations(annotations, root, 5)
    assert problems == []
    assert [(v.name, v.declared, v.labels) for v in videos] == [
        ("cars", 24, (3,)),
        ("a bunny 2", 24, (0,)),
        ("phone call 3.mp4", None, (4,)),
        (f"{root}/cars", 24, (1,)),
    ]
    assert [v.where for v in videos] == [f"{annotations}:{line}" for line in (2, 4, 5, 6)]
    assert all(v.path.exists() for v in videos)


def test_several_labels(root: Path) -> None:
    annotations = make_list(root, "cars 24 3 1", "phone call 3.mp4 4 0 4", "cars 24 2")
    data = AnnotatedVideos(annotations, root, stride=4, **SIZES, multi_label=True)
    assert data.problems == []
    assert [v.labels for v in data.videos] == [(3, 1), (4, 0, 4), (2,)]
    assert [v.declared for v in data.videos] == [24, None, 24]
    np.testing.assert_array_equal(data.target(1), np.float32([1, 0, 0, 0, 1]))
    assert data.target(1).dtype == np.float32  # type: ignore[union-attr]
    # The one thing that cannot be told apart there: the 2 is taken for a number.
    _, problems = read_annotations(make_list(root, "a bunny 2 24 0"), root, 5, True)
    assert "no such video or folder" in problems[0]


def test_windows_text_and_a_byte_order_mark(root: Path) -> None:
    path = root / "windows.txt"
    path.write_bytes("\ufeffcars 24 3\r\nphone call 3.mp4 1\r\n".encode())
    videos, problems = read_annotations(path, root, 5)
    assert [v.name for v in videos] == ["cars", "phone call 3.mp4"]
    assert problems == []


MISTAKES = {
    "cars": r"expected a path and its label, a whole number, got 'cars'",
    "7": r"expected a path and its label, a whole number, got '7'",
    "cars 24 three": r"expected a path and its label, a whole number, got 'cars 24 three'",
    "cars 3": r"cars is a folder: expected the number of its frames, then the label, got 'cars 3'",
    "cars 0 3": r"expected a folder of at least 1 frame, got 0 in 'cars 0 3'",
    "cars 24 5": r"label 5 is out of range: expected 0 to 4",
    "phone call 3.mp4 -1": r"label -1 is out of range: expected 0 to 4",
    "gone.mp4 1": r"no such video or folder: .*gone.mp4",
    "gone 24 1": r"no such video or folder: .*gone",
    "x" * 5000 + ".mp4 1": r"File name too long",
}


@pytest.mark.parametrize("line", MISTAKES, ids=lambda line: line[:20])
def test_a_wrong_line_is_named_and_the_others_stay(root: Path, line: str) -> None:
    annotations = make_list(root, "# first", "cars 24 3", line, "cars 24 2", name="wrong.txt")
    data = AnnotatedVideos(annotations, root, stride=4, **SIZES)
    assert [data.target(i) for i in range(len(data))] == [3, 2]
    (problem,) = data.problems
    assert problem.startswith(f"{annotations}:3: ")
    with pytest.raises(ValueError, match=MISTAKES[line]):
        AnnotatedVideos(annotations, root, stride=4, **SIZES, strict=True)


def test_all_mistakes_are_reported_together(root: Path) -> None:
    annotations = make_list(root, *MISTAKES)
    with annotations.open("ab") as file:
        file.write(b"caf\xe9.mp4 1\n")  # not UTF-8
    data = AnnotatedVideos(annotations, root, stride=4, **SIZES)
    assert len(data) == 0
    assert len(data.problems) == len(MISTAKES) + 1
    assert f":{len(MISTAKES) + 1}: 'utf-8' codec can't decode" in data.problems[-1]
    with pytest.raises(ValueError, match=rf"{len(MISTAKES) + 1} lines cannot be used:\n.*:1: .*\n.*:2: "):
        AnnotatedVideos(annotations, root, stride=4, **SIZES, strict=True)


def test_lists_that_are_none(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AnnotatedVideos(tmp_path / "gone.txt", root, **SIZES)
    with pytest.raises(ValueError, match=r"list.txt: no line in it names a video"):
        AnnotatedVideos(make_list(root, "# only this", ""), root, **SIZES)


def test_testing_takes_the_centre(root: Path) -> None:
    data = AnnotatedVideos(make_list(root, "cars 24 3", "phone call 3.mp4 1"), root, stride=4, **SIZES)
    for index, path in enumerate((root / "cars", root / "phone call 3.mp4")):
        frames = read_frames(path, 4, 4)
        assert frames.indices.tolist() == [5, 9, 13, 17]
        clip = data.clip(index)
        np.testing.assert_array_equal(clip, preprocess(frames.images, (32, 32)))
        assert clip.dtype == np.float32
        assert clip.shape == (3, 4, 32, 32)


def test_the_released_frames_and_pixels_and_those_of_the_frameworks_0x_releases(root: Path) -> None:
    annotations = make_list(root, "cars 24 3")
    images = read_frames(root / "cars", 24, 1).images
    clips = {
        (sampling, resize): AnnotatedVideos(
            annotations, root, stride=4, **SIZES, sampling=sampling, resize=resize, augment=NONE
        )
        for sampling in ("span", "window")
        for resize in ("antialiased", "opencv")
    }
    for (sampling, resize), data in clips.items():
        start = {"span": (24 - 13) // 2, "window": (24 - 16 + 1) // 2}[sampling]
        expected = normalise(resize_and_crop(images[start : start + 13 : 4], (32, 32), resize=resize))
        np.testing.assert_array_equal(data.clip(0), expected)
    rng = np.random.default_rng(5)
    frames = read_frames(root / "cars", 4, 4, float(rng.random()))
    expected = normalise(random_scale_and_crop(frames.images, rng, (32, 32), "opencv"))
    np.testing.assert_array_equal(clips["span", "opencv"].clip(0, np.random.default_rng(5)), expected)
    assert len({repr(data) for data in clips.values()}) == 4


@pytest.mark.parametrize("resize", ["antialiased", "opencv"])
def test_a_twin_is_sampled_and_augmented_anew(root: Path, resize: str) -> None:
    annotations = make_list(root, "cars 24 3", "cars 25 1")
    data = AnnotatedVideos(annotations, root, stride=4, **SIZES, flip=True, augment=(2, 9.0), resize=resize)
    assert isinstance(data, MakesTwins)
    everything = read_frames(root / "cars", 24, 1).images
    seen = set()
    for seed in range(12):
        twin = data.twin(0, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        # the window of 16 frames has 9 places; one of its 4 frames is drawn, and augmented as a clip of one frame
        number = int(rng.random() * 9) + 4 * int(rng.integers(4))
        images = random_flip(random_scale_and_crop(everything[number : number + 1], rng, (32, 32), resize), rng)
        still = normalise(rand_augment(images, rng, 2, 9.0))
        assert twin.shape == (3, 4, 32, 32)
        assert twin.dtype == np.float32
        np.testing.assert_array_equal(twin, np.repeat(still, 4, axis=1))
        seen.add(number)
    assert len(seen) > 6
    with pytest.raises(UnreadableClipError, match=r"list.txt:2: .*the list says 25 frames, the folder has 24"):
        data.twin(1, np.random.default_rng(0))


def test_training_draws_time_scale_crop_and_augmentation(root: Path) -> None:
    annotations = make_list(root, "cars 24 3")
    data = AnnotatedVideos(annotations, root, stride=4, **SIZES, flip=True, augment=(1, 5.0))
    starts = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        frames = read_frames(root / "cars", 4, 4, float(rng.random()))
        images = random_flip(random_scale_and_crop(frames.images, rng, (32, 32)), rng)
        expected = normalise(rand_augment(images, rng, 1, 5.0))
        np.testing.assert_array_equal(data.clip(0, np.random.default_rng(seed)), expected)
        starts.add(int(frames.indices[0]))
    assert len(starts) > 4
    plain = AnnotatedVideos(
        annotations, root, stride=4, **SIZES, augment=NONE
    )  # no mirror in it: every start of a frame is there
    rng = np.random.default_rng(3)
    frames = read_frames(root / "cars", 4, 4, float(rng.random()))
    expected = normalise(random_scale_and_crop(frames.images, rng, (32, 32)))
    np.testing.assert_array_equal(plain.clip(0, np.random.default_rng(3)), expected)


def test_broken_videos_are_named_with_their_line(root: Path) -> None:
    annotations = make_list(root, "cut.mp4 1", "nothing.mp4 1", "empty 24 1", "cars 25 1", "gone later 24 1")
    (root / "gone later").mkdir()
    data = AnnotatedVideos(annotations, root, stride=4, **SIZES)
    shutil.rmtree(root / "gone later")
    says = [
        r":1: .*cut.mp4: the file is truncated",
        r":2: .*nothing.mp4: the file is empty",
        r":3: .*empty: a folder without images",
        r":4: .*cars: the list says 25 frames, the folder has 24",
        r":5: .*gone later: no such video",
    ]
    assert len(data) == len(says)
    for index, words in enumerate(says):
        for rng in (None, np.random.default_rng(0)):
            with pytest.raises(UnreadableClipError, match=str(annotations) + words):
                data.clip(index, rng)


def test_short_videos_begin_anew_or_are_refused(root: Path) -> None:
    annotations = make_list(root, "# a comment", "cars 24 3", "phone call 3.mp4 1")
    data = AnnotatedVideos(annotations, root, stride=10, **SIZES)
    for index, line in enumerate((2, 3)):
        message = rf"{annotations}:{line}: 4 frames 10 apart need 31 frames, .* has 24; it is read again from its start"
        with pytest.warns(ShortVideoWarning, match=message):
            clip = data.clip(index)
        frames = read_frames(data.videos[index].path, 24, 1).images[[0, 10, 20, 6]]
        np.testing.assert_array_equal(clip, preprocess(frames, (32, 32)))
    strict = AnnotatedVideos(annotations, root, stride=10, **SIZES, short="refuse")
    with pytest.raises(
        UnreadableClipError, match=rf"{annotations}:2: .*cars: 4 frames 10 apart need 31 frames.*has 24"
    ):
        strict.clip(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AnnotatedVideos(annotations, root, stride=7, **SIZES).clip(0)  # 22 frames: enough


def test_repr_tells_the_data_but_not_where_they_lie(root: Path, tmp_path: Path) -> None:
    first = AnnotatedVideos(make_list(root, "cars 24 3", "cars 24 1"), root, stride=4, **SIZES)
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    assert repr(AnnotatedVideos(moved / "list.txt", moved, stride=4, **SIZES)) == repr(first)
    others = [
        AnnotatedVideos(root / "list.txt", root, stride=5, **SIZES),
        AnnotatedVideos(root / "list.txt", root, stride=4, multi_label=True, **SIZES),
        AnnotatedVideos(make_list(root, "cars 24 3", "cars 24 2"), root, stride=4, **SIZES),
        AnnotatedVideos(root / "list.txt", root, stride=4, resize="opencv", **SIZES),
        AnnotatedVideos(root / "list.txt", root, stride=4, sampling="window", **SIZES),
    ]
    assert len({repr(first), *map(repr, others)}) == 6


def test_settings_are_checked(root: Path) -> None:
    annotations = make_list(root, "cars 24 3")
    with pytest.raises(ValueError, match="short: expected 'loop' or 'refuse', got 'pad'"):
        AnnotatedVideos(annotations, root, short="pad", **SIZES)
    with pytest.raises(ValueError, match="sampling: expected one of span, window, got 'uniform'"):
        AnnotatedVideos(annotations, root, sampling="uniform", **SIZES)
    with pytest.raises(ValueError, match="resize: expected one of antialiased, opencv, got 'area'"):
        AnnotatedVideos(annotations, root, resize="area", **SIZES)
    with pytest.raises(ValueError, match=r"image_size: expected \(height, width\), got \(32,\)"):
        AnnotatedVideos(annotations, root, 5, image_size=(32,))
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        AnnotatedVideos(annotations, root, 0)
    with pytest.raises(ValueError, match="stride: expected at least 1, got 0"):
        AnnotatedVideos(annotations, root, stride=0, **SIZES)


def test_a_missing_decoder_is_no_fault_of_one_video(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = AnnotatedVideos(make_list(root, "phone call 3.mp4 1"), root, stride=4, **SIZES)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match="reading a video file needs PyAV"):
        data.clip(0)
