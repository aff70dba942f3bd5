"""Merge stored chunk vectors into one vector per section, document or conversation.

>>> from merger_plugins import load_merger
>>> merger = load_merger()                      # for the bundled all-MiniLM-L6-v2
>>> merger.merge(vectors).shape                 # (n, 384) chunk vectors in reading order -> (384,)
"""

from merger_plugins.conversation import (
    ConversationQuery,
    HistoryGate,
    QuestionNeed,
    fading_masses,
    load_gate,
    merge_question,
    shown_passages,
)
from merger_plugins.embedders import Embedder, MiniLMEmbedder, as_embedder, load_embedder
from merger_plugins.errors import MergerError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.calibrated import CalibratedMerger
from merger_plugins.mergers.calibration import Background, CalibrationStatistics
from merger_plugins.mergers.context import TURN_WEIGHTS, ContextWeights
from merger_plugins.mergers.loading import load_merger
from merger_plugins.mergers.mean import MeanMerger
from merger_plugins.mergers.onnx import OnnxMerger
from merger_plugins.mergers.transformers import TransformersMerger
from merger_plugins.tree import RollingMerge

__all__ = [
    "TURN_WEIGHTS",
    "Background",
    "CalibratedMerger",
    "CalibrationStatistics",
    "ContextWeights",
    "ConversationQuery",
    "Embedder",
    "HistoryGate",
    "MeanMerger",
    "MergerError",
    "MiniLMEmbedder",
    "OnnxMerger",
    "QuestionNeed",
    "RollingMerge",
    "SequenceMerger",
    "TransformersMerger",
    "as_embedder",
    "fading_masses",
    "load_embedder",
    "load_gate",
    "load_merger",
    "merge_question",
    "shown_passages",
]

__version__ = "0.1.0"
