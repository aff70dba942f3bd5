"""Every error that this package raises on purpose.

::

    MergerError
    ├── InputError (ValueError)          what was passed in cannot be merged or embedded
    │   ├── EmptyInputError              nothing to work on: no vectors, no text
    │   ├── DimensionError               the vectors have another dimension than the merger
    │   ├── NonFiniteError               NaN or infinity in a vector or a mass
    │   └── ZeroVectorError              a vector of length zero has no direction
    ├── StateError (ValueError)          a saved rolling state is damaged, or of another version
    ├── ArtefactError                    a model folder is missing, damaged or of another version
    │   └── UntrustedCodeError           a checkpoint brings code that nobody agreed to run
    ├── FingerprintError                 vectors of two different mergers would be mixed
    ├── ProviderError (RuntimeError)     ONNX Runtime cannot give the execution provider asked for
    ├── NoMemoryError (MemoryError)      a merge does not fit into the memory of the processor or the GPU
    ├── DocumentError                    a file cannot be read as text
    ├── TrainingError (RuntimeError)     a training cannot start or go on
    ├── ClusterError (RuntimeError)      a Ray cluster cannot be reached, or gave up
    ├── DataError                        a benchmark's data is missing, or of another revision
    ├── ResultError                      a benchmark's result file was edited, is damaged or another run's
    ├── StoreError                       a vector store refused, or holds something unexpected
    │   ├── StoreUnavailableError        the server does not answer
    │   ├── StoreFullError               no space is left
    │   ├── ConflictError                another writer is at work on the same document
    │   └── StoreVersionError            written by a newer version of this package
    └── MissingExtraError (ImportError)  an optional package is not installed

A message says what arrived, what was expected and what to do.
"""


class MergerError(Exception):
    """Base of every error of this package."""


class InputError(MergerError, ValueError):
    """The vectors, masses or text passed in cannot be used."""


class EmptyInputError(InputError):
    """There is nothing to merge, embed or ingest."""


class DimensionError(InputError):
    """An array has the wrong shape or dimension."""


class NonFiniteError(InputError):
    """A vector or a mass holds NaN or infinity."""


class ZeroVectorError(InputError):
    """A vector has length zero, so it has no direction."""


class StateError(MergerError, ValueError):
    """A saved rolling state is damaged, of another version or of another merger."""


class ArtefactError(MergerError):
    """A model folder is missing, incomplete, damaged or of another version."""


class UntrustedCodeError(ArtefactError):
    """A checkpoint brings Python code, and the caller did not agree to run it."""


class FingerprintError(MergerError):
    """Vectors made by two different mergers would be mixed."""


class ProviderError(MergerError, RuntimeError):
    """ONNX Runtime cannot give the execution provider that was asked for."""


class NoMemoryError(MergerError, MemoryError):
    """A merge does not fit into the memory of the processor or the GPU."""


class DocumentError(MergerError):
    """A file cannot be read as text."""


class TrainingError(MergerError, RuntimeError):
    """A training cannot start or go on: not a number, no space, another configuration."""


class ClusterError(MergerError, RuntimeError):
    """A Ray cluster cannot be reached, or could not complete a part of the work."""


class DataError(MergerError):
    """A benchmark's data is missing, or of another revision than its figures."""


class ResultError(MergerError):
    """A benchmark's result file was edited, is damaged, or belongs to another run."""


class StoreError(MergerError):
    """A vector store refused a request, or holds something unexpected."""


class StoreUnavailableError(StoreError):
    """The vector store does not answer."""


class StoreFullError(StoreError):
    """The vector store has no space left."""


class ConflictError(StoreError):
    """Another writer changes the same document, or left it half written."""


class StoreVersionError(StoreError):
    """The store was written by a newer version of this package."""


class MissingExtraError(MergerError, ImportError):
    """An optional package is not installed."""
