"""Pictures of what was found: a heat map of similarities, a contact sheet of photos.

Matplotlib figures, made without pyplot: no display is needed and no state of the caller's is touched. `jaxclip[plot]`
has matplotlib. Names and texts may hold anything: what the font has no glyph for is drawn as a box.
"""

from jaxclip.plotting.confusion import confusion_matrix
from jaxclip.plotting.detection import detected
from jaxclip.plotting.differences import error_growth
from jaxclip.plotting.heat_map import similarity_heat_map
from jaxclip.plotting.page import require_matplotlib, write_figure
from jaxclip.plotting.photos import classified_photos, contact_sheet
from jaxclip.plotting.training import training_curves

__all__ = [
    "classified_photos",
    "confusion_matrix",
    "contact_sheet",
    "detected",
    "error_growth",
    "require_matplotlib",
    "similarity_heat_map",
    "training_curves",
    "write_figure",
]
