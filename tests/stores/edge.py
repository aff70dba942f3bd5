"""The real Qdrant engine in this process, behind the calls of `QdrantClient` that the adapter makes.

The client's own embedded mode is a rewrite in Python; `qdrant-edge-py` is the engine of the server. What both
agree on is unlikely to be an accident of one of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import qdrant_edge as edge
from qdrant_client import QdrantClient, models


class EdgeClient(QdrantClient):
    """A shard a collection, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[str, edge.EdgeShard] = {}
        self.configs: dict[str, Any] = {}

    @property
    def init_options(self) -> dict[str, Any]:
        return {"path": str(self.folder)}

    def close(self, **_: Any) -> None:
        for shard in self.shards.values():
            shard.close()
        self.shards = {}

    def __del__(self) -> None:
        pass

    def collection_exists(self, collection_name: str, **_: Any) -> bool:
        return collection_name in self.shards

    def get_collection(self, collection_name: str, **_: Any) -> Any:
        params = SimpleNamespace(vectors=self.configs[collection_name])
        return SimpleNamespace(config=SimpleNamespace(params=params))

    def create_collection(self, collection_name: str, vectors_config: Any = None, **_: Any) -> bool:
        def params(one: models.VectorParams) -> edge.EdgeVectorParams:
            return edge.EdgeVectorParams(size=one.size, distance=getattr(edge.Distance, one.distance.value))

        many = isinstance(vectors_config, dict)
        vectors = {k: params(v) for k, v in vectors_config.items()} if many else params(vectors_config)
        path = self.folder / collection_name
        path.mkdir(parents=True)
        self.shards[collection_name] = edge.EdgeShard.create(str(path), edge.EdgeConfig(vectors=vectors))
        self.configs[collection_name] = vectors_config
        return True

    def delete_collection(self, collection_name: str, **_: Any) -> bool:
        if (shard := self.shards.pop(collection_name, None)) is None:
            return False
        shard.close()
        shutil.rmtree(self.folder / collection_name)
        return True

    def retrieve(
        self, collection_name: str, ids: Any, with_payload: Any = True, with_vectors: Any = False
    ) -> Any:
        found = self.shards[collection_name].retrieve(list(ids), with_payload, with_vectors)
        return [_record(record) for record in found]

    def upsert(
        self,
        collection_name: str,
        points: Any,
        update_filter: Any = None,
        update_mode: models.UpdateMode | None = None,
        **_: Any,
    ) -> None:
        made = [edge.Point(point.id, point.vector, point.payload) for point in points]
        operation = edge.UpdateOperation.upsert_points(made, _filter(update_filter), _MODES[update_mode])
        self.shards[collection_name].update(operation)

    def set_payload(self, collection_name: str, payload: Any, points: Any, **_: Any) -> None:
        self.shards[collection_name].update(edge.UpdateOperation.set_payload(points, payload))

    def delete(self, collection_name: str, points_selector: Any, **_: Any) -> None:
        if isinstance(points_selector, models.FilterSelector):
            operation = edge.UpdateOperation.delete_points_by_filter(_filter(points_selector.filter))
        elif isinstance(points_selector, models.PointIdsList):
            operation = edge.UpdateOperation.delete_points(list(points_selector.points))
        else:
            operation = edge.UpdateOperation.delete_points(list(points_selector))
        self.shards[collection_name].update(operation)

    def scroll(
        self,
        collection_name: str,
        scroll_filter: Any = None,
        limit: int = 10,
        offset: Any = None,
        with_payload: Any = True,
        with_vectors: Any = False,
        **_: Any,
    ) -> Any:
        request = edge.ScrollRequest(offset, limit, _filter(scroll_filter), with_payload, with_vectors)
        records, following = self.shards[collection_name].scroll(request)
        return [_record(record) for record in records], following

    def count(self, collection_name: str, count_filter: Any = None, **_: Any) -> Any:
        request = edge.CountRequest(True, _filter(count_filter))
        return SimpleNamespace(count=self.shards[collection_name].count(request))

    def query_points(
        self,
        collection_name: str,
        query: Any = None,
        using: Any = None,
        query_filter: Any = None,
        limit: int = 10,
        with_payload: Any = True,
        **_: Any,
    ) -> Any:
        request = edge.QueryRequest(
            limit=limit,
            query=edge.Query.Nearest(query, using),
            filter=_filter(query_filter),
            with_payload=with_payload,
        )
        points = self.shards[collection_name].query(request)
        return SimpleNamespace(
            points=[
                models.ScoredPoint(id=_id(p.id), version=0, score=p.score, payload=p.payload) for p in points
            ]
        )

    def query_points_groups(
        self, collection_name: str, group_by: str, group_size: int = 1, limit: int = 10, **asked: Any
    ) -> Any:
        """Grouping is the server's work above its shards, so it is done here."""
        groups: dict[str, list[Any]] = {}
        asked["with_payload"] = True  # to know the groups
        everything = max(self.count(collection_name).count, 1)
        for point in self.query_points(collection_name, limit=everything, **asked).points:
            if (group := _at(point.payload, group_by)) is not None:
                hits = groups.setdefault(group, [])
                hits += [point] if len(hits) < group_size else []
        return SimpleNamespace(groups=[SimpleNamespace(hits=hits) for hits in groups.values()][:limit])


def _at(payload: Any, path: str) -> Any:
    for key in path.split("."):
        payload = payload.get(key) if isinstance(payload, dict) else None
    return payload


_MODES = {
    None: None,
    models.UpdateMode.INSERT_ONLY: edge.UpdateMode.InsertOnly,
    models.UpdateMode.UPDATE_ONLY: edge.UpdateMode.UpdateOnly,
}


def _id(point_id: Any) -> Any:
    return point_id if isinstance(point_id, int) else str(point_id)


def _record(record: Any) -> models.Record:
    return models.Record(id=_id(record.id), payload=record.payload, vector=record.vector)


def _filter(given: models.Filter | None) -> edge.Filter | None:
    if given is None:
        return None
    return edge.Filter(
        must=[_condition(one) for one in given.must or []] or None,
        must_not=[_condition(one) for one in given.must_not or []] or None,
        should=[_condition(one) for one in given.should or []] or None,
    )


def _condition(given: Any) -> Any:
    if isinstance(given, models.Filter):
        return _filter(given)
    if isinstance(given, models.HasIdCondition):
        return edge.HasIdCondition(given.has_id)
    if isinstance(given, models.IsEmptyCondition):
        return edge.IsEmptyCondition(given.is_empty.key)
    if given.range is not None:
        asked = given.range
        bounds = edge.RangeFloat(gt=asked.gt, gte=asked.gte, lt=asked.lt, lte=asked.lte)
        return edge.FieldCondition(given.key, range=bounds)
    if isinstance(given.match, models.MatchAny):
        return edge.FieldCondition(given.key, match=edge.MatchAny(given.match.any))
    return edge.FieldCondition(given.key, match=edge.MatchValue(given.match.value))
