"""Language models of three families behind one interface: `load_model` and `Backbone`."""

from promptforge.backbone.base import Backbone, Batch
from promptforge.backbone.load import load_model

__all__ = ["Backbone", "Batch", "load_model"]
