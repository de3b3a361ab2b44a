"""Every clip gets a twin that stands still at one of its frames."""

import numpy as np
import pytest

from refvt.data import static_twins


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_twins(dtype: type[np.floating]) -> None:
    clips = np.random.default_rng(0).standard_normal((5, 3, 6, 4, 8)).astype(dtype)
    before = clips.copy()
    out, labels = static_twins(clips, np.random.default_rng(7))
    assert out.dtype == dtype
    assert out.shape == (10, 3, 6, 4, 8)
    assert labels.dtype == np.int64
    assert labels.tolist() == [1] * 5 + [0] * 5
    np.testing.assert_array_equal(clips, before)
    np.testing.assert_array_equal(out[:5], clips)
    chosen = np.random.default_rng(7).integers(6, size=5)
    assert len(set(chosen.tolist())) > 1  # or the test could not tell one frame from another
    for b, frame in enumerate(chosen):
        for t in range(6):
            np.testing.assert_array_equal(out[5 + b, :, t], clips[b, :, frame])


def test_every_frame_is_drawn() -> None:
    clips = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1, 1).repeat(200, axis=0)
    out, _ = static_twins(clips, np.random.default_rng(0))
    assert set(out[200:, 0, 0, 0, 0].tolist()) == {0, 1, 2, 3}


def test_refused() -> None:
    clips = np.zeros((2, 3, 4, 8, 8), np.float32)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"clips: expected \[B, C, T, height, width\].*got \[3, 4, 8, 8\]"):
        static_twins(clips[0], rng)
    with pytest.raises(ValueError, match=r"got \[0, 3, 4, 8, 8\]"):
        static_twins(clips[:0], rng)
    with pytest.raises(TypeError, match="clips: expected a floating dtype, got uint8"):
        static_twins(clips.astype(np.uint8), rng)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"rng: expected a numpy\.random\.Generator, got int"):
        static_twins(clips, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got RandomState"):
        static_twins(clips, np.random.RandomState(0))  # type: ignore[arg-type]
