"""The names of tensors in checkpoints, as refvt's names."""

from __future__ import annotations

from collections.abc import Callable, Collection

__all__ = ["own_names"]

# a module that wraps another one puts its name between the model's: DistributedDataParallel, torch.compile, FSDP
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_RELEASED = {"backbone.model.": "", "cls_head.fc_cls.": "head.", "cls_head.fc_motion.": "motion_head."}
_HEADS = ("head.", "motion_head.", "head_dist.")


def own_names(names: Collection[str], known: Collection[str]) -> dict[str, str]:
    """Map the names of a checkpoint to refvt's.

    The released model's places (``backbone.model.``, ``cls_head.…``) are taken off, wrappers' names wherever they
    stand, and words before all names (``model.``, ``net.``; before all but the heads': ``backbone.``) where more of the
    names are then ``known`` ones.
    """
    plain = {name: ".".join(word for word in name.split(".") if word not in _WRAPPERS) or name for name in names}
    plain = _strip(plain, lambda name: _released(name) in known, lambda name: False)
    plain = {name: _released(value) for name, value in plain.items()}
    return _strip(plain, known.__contains__, lambda name: name.startswith(_HEADS))


def _released(name: str) -> str:
    for prefix, own in _RELEASED.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def _strip(names: dict[str, str], is_known: Callable[[str], bool], stays: Callable[[str], bool]) -> dict[str, str]:
    """Take words off the front of all names but those that stay, as long as all share the word; the best stage."""
    best, most = names, sum(map(is_known, names.values()))
    while True:
        moving = [name for name in names.values() if not stays(name)]
        first = {name.partition(".")[0] for name in moving}
        if len(first) != 1 or not all("." in name for name in moving):
            return best
        names = {name: value if stays(value) else value.partition(".")[2] for name, value in names.items()}
        found = sum(map(is_known, names.values()))
        if found > most:
            best, most = names, found
