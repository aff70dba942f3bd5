"""``python -m onnx_export``: release a model."""

import argparse
from pathlib import Path

from onnx_export.source import Source


def main(arguments: list[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m onnx_export", description="Release a model.")
    commands = parser.add_subparsers(dest="command", required=True)

    embedder = commands.add_parser("embedder", help="write the folder of the bundled base embedder")
    embedder.add_argument("--out", type=Path, default=Path("merger_plugins/models/all-MiniLM-L6-v2"))

    parity = commands.add_parser("parity", help="compare the bundled embedder with the torch model")
    parity.add_argument("--data", type=Path, required=True, help="folder of *.jsonl.gz with a text a line")
    parity.add_argument("--out", type=Path, default=Path("benchmarks/results/embedder_parity.json"))
    parity.add_argument("--reference", type=Path, default=Path("tests/embedders/reference.json"))
    parity.add_argument("--texts", type=int, default=1000)
    parity.add_argument("--seed", type=int, default=0)
    parity.add_argument("--threads", type=int, default=2)

    background = commands.add_parser("background", help="write the folder of the bundled merger")
    background.add_argument("--data", type=Path, required=True, help="folder with train/ and conv/")
    background.add_argument(
        "--out", type=Path, default=Path("merger_plugins/models/calibrated-all-MiniLM-L6-v2")
    )

    follow_up = commands.add_parser("follow-up", help="write the folder of the bundled gate of questions")
    follow_up.add_argument("--data", type=Path, required=True, help="folder with train/")
    follow_up.add_argument(
        "--out", type=Path, default=Path("merger_plugins/models/follow-up-all-MiniLM-L6-v2")
    )

    synthesizer = commands.add_parser("synthesizer", help="write the folder of the bundled synthesizer")
    synthesizer.add_argument("--run", type=Path, required=True, help="folder of a finished training")
    synthesizer.add_argument(
        "--out", type=Path, default=Path("merger_plugins/models/synthesizer-all-MiniLM-L6-v2")
    )

    gather = commands.add_parser("gather", help="write the graph that lays vectors out as sequences")
    gather.add_argument("--out", type=Path, default=Path("merger_plugins/models/gather.onnx"))

    options = parser.parse_args(arguments)
    if options.command == "embedder":
        from onnx_export.embedder import release

        artefact = release(Source.installed(), options.out)
        size = sum(path.stat().st_size for path in artefact.path.iterdir())
        print(f"{artefact.path}: {size:,} bytes, fingerprint {artefact.fingerprint}")
        return
    if options.command == "gather":
        from onnx_export.gather import release as release_gather

        print(release_gather(options.out))
        return
    if options.command == "background":
        from onnx_export.background import release as release_background

        print(release_background(options.data, options.out))
        return
    if options.command == "follow-up":
        from onnx_export.follow_up import release as release_follow_up

        print(release_follow_up(options.data, options.out))
        return
    if options.command == "synthesizer":
        from onnx_export.synthesizer import release as release_synthesizer

        print(release_synthesizer(options.run, options.out))
        return
    if not any(options.data.glob("*.jsonl.gz")):
        print(f"Skipped: there is no *.jsonl.gz in {options.data}, so there is nothing to compare on.")
        return
    from onnx_export.parity import measure

    result = measure(
        Source.installed(),
        options.data,
        results=options.out,
        reference=options.reference,
        texts=options.texts,
        seed=options.seed,
        threads=options.threads,
    )
    print(f"Cosine: {result['cosine']}; largest difference between batchings: {result['batching']}")
    print(f"Throughput: {result['throughput']['texts']}; result file: {options.out}")


if __name__ == "__main__":
    main()
