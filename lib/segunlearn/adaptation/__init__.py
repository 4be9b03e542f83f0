"""Site adaptation: a network fits itself to a hospital from a few of its annotated studies.

``adapt`` gives the tensors that change, and ``segunlearn.adapters.site`` keeps them. What makes a
few steps, or none, enough is learned before on many sites (``meta_training``): the weights to start
from with a rate for each layer and step (MAML), or a generator that reads the support studies and
gives the modulation of every normalisation layer in one forward pass.
"""

from segunlearn.adaptation.adapt import Adapted, AdaptSettings, adapt, check_support
from segunlearn.adaptation.gate import LeaveOneOut, choose, gate, leave_one_out
from segunlearn.adaptation.meta_model import MetaModel, read_meta_model, start_of

__all__ = [
    "AdaptSettings",
    "Adapted",
    "LeaveOneOut",
    "MetaModel",
    "adapt",
    "check_support",
    "choose",
    "gate",
    "leave_one_out",
    "read_meta_model",
    "start_of",
]
