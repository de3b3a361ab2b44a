"""Every picture that refvt draws. Without matplotlib a picture raises ModuleNotFoundError when it is drawn."""

from refvt.plots.halting import ClipStates, halting_gif, halting_picture
from refvt.plots.sheets import contact_sheet

__all__ = ["ClipStates", "contact_sheet", "halting_gif", "halting_picture"]
