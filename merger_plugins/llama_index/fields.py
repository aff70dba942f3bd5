"""Fields that hold objects: how they look in a dictionary, and how they come back from one or from a pickle.

A merger, a store or a function is no JSON. Where a name says all (``"mean"``, a model folder), the dictionary
holds that and the fingerprint. Otherwise it holds a description, which is refused on the way back with a
message that says what to pass: ``from_dict(data, merger=...)``. So nothing is lost silently.
"""

from __future__ import annotations

import pickle
from typing import Annotated, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings.loading import load_embed_model
from llama_index.core.schema import BaseComponent
from pydantic import BeforeValidator, PlainSerializer, ValidationInfo

from merger_plugins.errors import FingerprintError, InputError
from merger_plugins.mergers.base import SequenceMerger
from merger_plugins.mergers.loading import load_merger
from merger_plugins.mergers.mean import MeanMerger
from merger_plugins.mergers.onnx import OnnxMerger

_LIVE = "live"
_MERGER = "merger"
_FINGERPRINT = "fingerprint"


def _described(value: Any) -> Any:
    return None if value is None else {_LIVE: f"{type(value).__module__}.{type(value).__qualname__}"}


def _alive(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, dict) and _LIVE in value:
        raise InputError(
            f"{info.field_name} was a {value[_LIVE]}, which a dictionary cannot hold. Pass it beside: "
            f"from_dict(data, {info.field_name}=...)."
        )
    return value


def _merger_described(value: SequenceMerger | str | None) -> Any:
    if value is None or isinstance(value, MeanMerger):
        return None if value is None else {_MERGER: MeanMerger.kind}
    if isinstance(value, str):
        return {_MERGER: value, _FINGERPRINT: load_merger(value).fingerprint}
    if isinstance(value, OnnxMerger):
        return {_MERGER: str(value.path), _FINGERPRINT: value.fingerprint}
    return {**_described(value), _FINGERPRINT: value.fingerprint}


def _merger(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, dict) and _MERGER in value:
        name, expected = value[_MERGER], value.get(_FINGERPRINT)
        if expected is not None and (found := load_merger(name).fingerprint) != expected:
            raise FingerprintError(
                f"The merger {name!r} has the fingerprint {found}, and {expected} was noted. Its folder has "
                "changed: pass the one that is meant as merger=."
            )
        return name
    value = _alive(value, info)
    if value is None or isinstance(value, SequenceMerger | str):
        return value
    raise InputError(
        f"merger is a {type(value).__qualname__}; a merger, or what load_merger takes, was expected."
    )


def _model_described(value: Any) -> Any:
    return value.to_dict() if isinstance(value, BaseEmbedding) else _described(value)


def _model(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, dict) and "class_name" in value:
        from merger_plugins.llama_index.embedding import MergerEmbedding

        if value["class_name"] == MergerEmbedding.class_name():
            return MergerEmbedding.from_dict(value)
        try:
            return load_embed_model(value)
        except ValueError as error:
            raise InputError(
                f"LlamaIndex cannot make a {value['class_name']!r} from a dictionary ({error}). Pass it "
                f"beside: from_dict(data, {info.field_name}=...)."
            ) from error
    return _alive(value, info)


def _host_model(value: Any, info: ValidationInfo) -> Any:
    value = _model(value, info)
    if value is None or isinstance(value, BaseEmbedding):
        return value
    raise InputError(
        f"{info.field_name} is a {type(value).__qualname__}, where LlamaIndex's BaseEmbedding was expected. "
        "MergerEmbedding(...) makes one of LangChain's embeddings and of sentence-transformers models."
    )


Live = Annotated[Any, BeforeValidator(_alive), PlainSerializer(_described)]
"""Any object that a dictionary cannot hold."""

MergerField = Annotated[Any, BeforeValidator(_merger), PlainSerializer(_merger_described)]
"""A merger; a name or folder for `load_merger`; or None."""

AnyModel = Annotated[Any, BeforeValidator(_model), PlainSerializer(_model_described)]
"""An embedding model of any library, or None."""

HostModel = Annotated[Any, BeforeValidator(_host_model), PlainSerializer(_model_described)]
"""LlamaIndex's `BaseEmbedding`, or None."""


class Portable(BaseComponent):
    """A component that is pickled whole or not at all; the host's own leaves out what cannot be pickled."""

    def __getstate__(self) -> dict[str, Any]:
        for name in type(self).model_fields:
            if name == "callback_manager":
                continue
            try:
                pickle.dumps(getattr(self, name))
            except Exception as error:
                raise InputError(
                    f"{type(self).__name__} cannot be pickled, as its {name} cannot ({error}). Pickle "
                    f"to_dict(), and use from_dict(data, {name}=...) on the other side."
                ) from error
        return super().__getstate__()


def resolved(merger: SequenceMerger | str | None) -> SequenceMerger | None:
    """The merger that a `MergerField` names."""
    return load_merger(merger) if isinstance(merger, str) else merger
