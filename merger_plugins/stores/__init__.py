"""What the ingestion hooks of all vector databases share."""

from merger_plugins.stores.contents import StoredChunk
from merger_plugins.stores.documents import Document, Ingested
from merger_plugins.stores.filling import Backfilled, BackfillProgress
from merger_plugins.stores.search import FusionWeights, Hit, ScoreParts, SearchLevel
from merger_plugins.stores.store import MergedStore
from merger_plugins.stores.upkeep import Inspection, StoredDocument

__all__ = [
    "BackfillProgress",
    "Backfilled",
    "Document",
    "FusionWeights",
    "Hit",
    "Ingested",
    "Inspection",
    "MergedStore",
    "ScoreParts",
    "SearchLevel",
    "StoredChunk",
    "StoredDocument",
]
