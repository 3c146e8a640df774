"""The reference networks, and where their weights come from.

``NETWORKS`` holds every network by name; ``find`` looks one up and names the nearest when there is none.
Importing this package loads neither torch nor numpy: those come with the first
``Network.build``, ``engineworks.models.weights`` or ``engineworks.models.samples`` call that needs them.
"""

from engineworks.models.errors import DownloadError, ModelError, UnknownModelError, WeightsError
from engineworks.models.registry import NETWORKS, Network, Preprocessing, Published, find

__all__ = [
    "NETWORKS",
    "DownloadError",
    "ModelError",
    "Network",
    "Preprocessing",
    "Published",
    "UnknownModelError",
    "WeightsError",
    "find",
]
