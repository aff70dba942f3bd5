"""Options that several commands share."""

from typing import Annotated

import typer

STORE_VARIABLE = "MERGER_PLUGINS_STORE"
DEFAULT_STORE = ".merger-plugins"
DEFAULT_COLLECTION = "documents"

Store = Annotated[
    str,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        metavar="[chroma:]DIR|URL",
        help="Folder of an embedded Qdrant, or the URL of a Qdrant server (its key in QDRANT_API_KEY); "
        "chroma:DIR or chroma:URL for Chroma.",
    ),
]
Collection = Annotated[str, typer.Option("--collection", metavar="NAME", help="Collection in the store.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
