"""Which clips a step takes, and that neither order nor threads nor the rest of a run change them."""

import numpy as np
import pytest

from refvt.data.dataset import UnreadableClipError
from refvt.ops.losses.reference import cross_entropy_backward, cross_entropy_forward
from refvt.training.batches import (
    AHEAD,
    batch_of,
    generator,
    make_micro_batch,
    micro_batches,
    prefetch,
    steps_per_epoch,
    targets,
)
from refvt.training.data_sets import check_data
from refvt.training.errors import TrainingError
from tests.support.sliding_bars import SlidingBars, small_recipe

RECIPE = small_recipe()


def test_an_epoch_is_every_clip_once_in_an_order_of_its_own():
    assert steps_per_epoch(RECIPE, 30) == 4
    epochs = [np.concatenate([batch_of(RECIPE, 30, 4 * e + s) for s in range(4)]) for e in range(3)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [len(batch_of(RECIPE, 30, step)) for step in range(4)] == [8, 8, 8, 6]
    assert [micro_batches(RECIPE, 30, step) for step in (0, 3, 7)] == [2, 2, 2]
    assert micro_batches(RECIPE, 28, 3) == 1


def test_a_micro_batch_is_the_same_whoever_makes_it_and_whenever():
    data = SlidingBars()
    there = [make_micro_batch(RECIPE, data, step, number) for step in range(5) for number in range(2)]
    back = [make_micro_batch(RECIPE, data, step, number) for step in reversed(range(5)) for number in (1, 0)]
    for a, b in zip(there, reversed(back), strict=True):
        assert np.array_equal(a.clips, b.clips)
        assert np.array_equal(a.labels, b.labels)
    assert not np.array_equal(there[0].clips, there[1].clips)


def test_twins_stand_behind_their_clips_with_the_same_labels():
    batch = make_micro_batch(RECIPE, SlidingBars(), 3, 1)  # the last of an epoch of 30
    assert batch.size == 2
    assert batch.clips.shape == (4, 1, 4, 8, 8)
    assert batch.labels.tolist() == [*(batch_of(RECIPE, 30, 3)[4:] % 3)] * 2
    assert batch.motion_labels.tolist() == [1, 1, 0, 0]
    assert (batch.clips[2:] == batch.clips[2:, :, :1]).all()
    alone = make_micro_batch(small_recipe(static_twins=False), SlidingBars(), 3, 1)
    assert alone.motion_labels is None
    assert np.array_equal(alone.clips, batch.clips[:2])


def test_every_draw_has_a_generator_of_its_own():
    draws = [
        generator(RECIPE, purpose, *at).random() for purpose in ("clip", "twin") for at in ((0, 1), (1, 0), (1, 1))
    ]
    draws.append(generator(small_recipe(seed=1), "clip", 0, 1).random())
    assert len(set(draws)) == 7
    assert generator(RECIPE, "clip", 0, 1).random() == draws[0]


def test_several_classes_of_a_clip_share_it():
    class Several(SlidingBars):
        def target(self, index):
            return np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], np.float32)[index]

    assert targets(Several(3, multi_label=True), np.arange(3)).tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 0, 1]]
    assert targets(SlidingBars(), np.arange(4)).tolist() == [0, 1, 2, 0]


def test_several_classes_of_a_clip_count_each_if_they_are_not_divided():
    class Several(SlidingBars):
        def target(self, index):
            return np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], np.float32)[index % 3]

    data = Several(30, multi_label=True)
    assert targets(data, np.arange(3), divide=False).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert targets(SlidingBars(), np.arange(4), divide=False).tolist() == [0, 1, 2, 0]
    divided, whole = (make_micro_batch(small_recipe(divide_labels=d), data, 0, 0).labels for d in (True, False))
    rows = [data.target(int(i)) for i in batch_of(RECIPE, 30, 0)[:4]] * 2
    assert whole.tolist() == [row.tolist() for row in rows]
    assert divided.sum(axis=1).tolist() == [min(1, sum(row)) for row in rows]


@pytest.mark.torch
def test_the_loss_of_several_labels_is_that_of_the_released_code():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    labels = (rng.random((6, 5)) < 0.5).astype(np.float64)  # none to four labels a clip
    logits = torch.tensor(rng.standard_normal((6, 5)), requires_grad=True)
    loss = -(torch.tensor(labels) * torch.log_softmax(logits, 1)).sum(1).mean()
    loss.backward()
    ours, cache = cross_entropy_forward(logits.detach().numpy(), labels)
    assert float(ours) == pytest.approx(float(loss), rel=1e-14)
    gradient = cross_entropy_backward(np.float64(1), cache)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=0, atol=1e-15)


class BarsWithTwins(SlidingBars):
    """A twin shows the number of its clip and one draw."""

    def twin(self, index, rng):
        return np.full((1, 4, 8, 8), index + rng.random(), np.float32)


def test_twins_may_come_from_the_video():
    recipe = small_recipe(twins_from="video")
    for step, number in ((0, 1), (5, 0)):
        batch = make_micro_batch(recipe, BarsWithTwins(), step, number)
        chosen = batch_of(recipe, 30, step)[4 * number : 4 * number + 4]
        assert (batch.clips[:4] == make_micro_batch(RECIPE, SlidingBars(), step, number).clips[:4]).all()
        assert batch.clips[4:, 0, 0, 0, 0].tolist() == [
            np.float32(i + generator(recipe, "twin", step // 4, int(i)).random()) for i in chosen
        ]
        assert batch.labels.tolist() == [*(chosen % 3)] * 2
        assert batch.motion_labels.tolist() == [1] * 4 + [0] * 4
    alone = make_micro_batch(small_recipe(twins_from="video", static_twins=False), SlidingBars(), 0, 1)
    assert (len(alone.clips), alone.motion_labels) == (4, None)
    with pytest.raises(TypeError, match="twins_from: 'video' needs a data set with a method twin, got SlidingBars"):
        make_micro_batch(recipe, SlidingBars(), 0, 0)
    with pytest.raises(TrainingError, match="twins_from: 'video' needs a training set that makes twins from its"):
        check_data(recipe, SlidingBars(), SlidingBars(), 1)
    check_data(recipe, BarsWithTwins(), SlidingBars(), 1)


def test_a_clip_whose_twin_cannot_be_read_is_left_out_with_it():
    class Torn(BarsWithTwins):
        def twin(self, index, rng):
            if index == lost:
                raise UnreadableClipError("film.mp4: no frames")
            return super().twin(index, rng)

    recipe = small_recipe(twins_from="video")
    first = batch_of(recipe, 30, 0)[:4]
    lost = int(first[1])
    batch = make_micro_batch(recipe, Torn(), 0, 0)
    assert (batch.size, len(batch.clips), batch.unreadable) == (3, 6, ["film.mp4: no frames"])
    assert batch.labels.tolist() == [*(first[[0, 2, 3]] % 3)] * 2


def test_clips_are_made_ready_in_order_and_only_a_little_ahead():
    asked = []

    def make(step, number):
        asked.append(step)
        return step

    ready = prefetch(make, ((step, 0) for step in range(50)))
    assert [next(ready) for _ in range(10)] == list(range(10))
    ready.close()
    assert len(asked) <= 10 + AHEAD + 1
    assert list(prefetch(make, ((step, 0) for step in range(7)))) == list(range(7))


def test_unreadable_clips_are_left_out_and_other_errors_are_not():
    class Broken(SlidingBars):
        error = UnreadableClipError("film.mp4: no frames")

        def clip(self, index, rng=None):
            if index == 17:
                raise self.error
            return super().clip(index, rng)

    step = next(s for s in range(4) if 17 in batch_of(RECIPE, 30, s))
    whole, cut = ([make_micro_batch(RECIPE, data, step, n) for n in range(2)] for data in (SlidingBars(), Broken()))
    assert sum(b.size for b in whole) == sum(b.size for b in cut) + 1
    assert [problem for b in cut for problem in b.unreadable] == ["film.mp4: no frames"]
    for a, b in zip(whole, cut, strict=True):
        moving = [clip for clip in a.clips[: a.size] if any(np.array_equal(clip, other) for other in b.clips)]
        assert len(moving) == b.size
        assert len(b.clips) == len(b.labels) == len(b.motion_labels) == 2 * b.size
    Broken.error = MemoryError("no room")
    with pytest.raises(MemoryError, match="no room"):
        list(prefetch(lambda s, n: make_micro_batch(RECIPE, Broken(), s, n), ((step, n) for n in range(2))))


def test_nothing_readable_makes_an_empty_micro_batch():
    class Gone(SlidingBars):
        def clip(self, index, rng=None):
            raise UnreadableClipError(f"film {index}")

    batch = make_micro_batch(RECIPE, Gone(), 0, 0)
    assert (batch.size, len(batch.clips), len(batch.labels), len(batch.unreadable)) == (0, 0, 0, 4)
