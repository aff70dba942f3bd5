"""`MergedStore`: documents and conversations in a vector database, searchable on every level."""

from __future__ import annotations

from merger_plugins.stores.keeping import Keeping
from merger_plugins.stores.reading import Reading
from merger_plugins.stores.writing import Writing


class MergedStore(Writing, Reading, Keeping):
    """Chunk vectors in a user's collection, and the merged vectors over them in a companion collection.

    The adapters `merger_plugins.qdrant` and those beside it derive from this class and add the database.
    Chunk points carry the raw vector, the text and the metadata; the companion, named like the collection
    with ``__merged`` after it, carries sections, roots and the settings. It is a context manager, and opens
    nothing before it is used.

    Any number of threads, and on a server of processes, may write at once, also into one document: each
    operation happens as a whole, before or after every other. Whatever interrupts one, the next that touches
    the document completes or refuses it, `verify` finds it, and repeating the call ends in the state of a
    call that nothing interrupted.

    Args:
        backend: the database.
        merger: makes the merged vectors. None for `load_merger()` where the embedder is the bundled one or
            None, else for a `CalibratedMerger` of an unknown model. Where the store was calibrated, the
            merger it was calibrated from is enough. Pass ``CalibratedMerger(dimension=...)`` where the
            vectors passed in are another model's.
        embedder: makes chunk and query vectors from text, anything that `as_embedder` accepts;
            `load_embedder()` for None, and only once there is text to embed.
        chunker: splits texts; sentences packed up to 50 tokens for None.
        contextual: whether chunk points of a new collection get a contextual vector too. A collection that
            exists keeps what it was made with.
        half_life: the age at which a conversation's turn counts half in its root: a number of turns, or a
            `timedelta`, for which every turn needs its time. None for no fading, or as the store was made. It
            belongs to the store from its first write on: another one is refused. Documents do not fade, nor
            do sections.
        pause: seconds, or a `timedelta`, without a turn after which the next one begins a new sitting, whose
            root its contextual vector is made with (see `append`). Turns that are stored keep their sitting.
    """
