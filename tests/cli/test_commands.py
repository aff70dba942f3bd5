"""The commands as a person or a script runs them, on real embedded stores with the bundled embedder."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("qdrant_client")
pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

from merger_plugins import CalibratedMerger, MiniLMEmbedder, __version__, load_merger
from merger_plugins.cli import ingest as ingest_command

BEES = "The bees swarm in May.\n\nHoney is harvested in July, when it holds less than 18 percent water."
TRAIN = "The night train leaves Oslo at nine.\n\nBreakfast is served in bed."
CHAT = [
    {
        "turn_id": "t1",
        "session": "s1",
        "time": "2026-01-01T10:00",
        "speaker": "Ann",
        "text": "Where is the key?",
    },
    {"turn_id": "t2", "session": "s1", "speaker": "Bo", "text": "Under the third flowerpot."},
    {"turn_id": "t3", "session": "s2", "speaker": "Ann", "text": "The plumber wants 340 crowns."},
    {"turn_id": "t4", "session": "s2", "speaker": "Bo", "text": "I paid him on Monday."},
]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MERGER_PLUGINS_STORE", raising=False)
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


@pytest.fixture
def run_json(run):
    def run_json(*arguments, code=0, stdin=None):
        return json.loads(run(*arguments, "--json", code=code, stdin=stdin).stdout)

    return run_json


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "bees.txt").write_text(BEES)
    (folder / "sub" / "train.md").write_text(f"# Train\n\n{TRAIN}")
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, CHAT)))
    return folder


def by_id(document):
    return {row["id"]: row for row in document["files"]}


class TestIngest:
    def test_every_kind_of_file_is_stored(self, run, run_json, docs):
        result = run("ingest", docs)
        assert result.stdout.startswith("3 files stored, 0 of them unchanged")
        assert result.stderr == ""
        stored = {row["id"]: row for row in run_json("inspect")["stored"]}
        assert set(stored) == {"bees.txt", "sub/train.md", "chat.jsonl"}
        assert stored["chat.jsonl"]["conversation"]
        assert stored["chat.jsonl"]["chunks"] == 4

    def test_again_changes_nothing(self, run_json, docs):
        first = run_json("ingest", docs)
        again = run_json("ingest", docs)
        assert sum(row["embedded"] for row in first["files"]) > 0
        assert set(by_id(again)) == set(by_id(first))
        for row in again["files"]:
            assert row["unchanged"]
            assert row["embedded"] == row["points_written"] == row["points_deleted"] == 0

    def test_of_a_changed_file_only_the_change_is_embedded(self, run_json, docs):
        run_json("ingest", docs)
        (docs / "bees.txt").write_text(BEES.replace("in May", "in June"))
        rows = by_id(run_json("ingest", docs))
        assert rows["bees.txt"]["embedded"] == 1
        assert rows["sub/train.md"]["unchanged"]

    def test_new_turns_of_a_chat_are_appended(self, run_json, docs):
        run_json("ingest", docs)
        with (docs / "chat.jsonl").open("a") as chat:
            chat.write('\n{"turn_id": "t5", "speaker": "Ann", "text": "Thanks."}\n')
        assert by_id(run_json("ingest", docs))["chat.jsonl"]["embedded"] == 1

    def test_a_rewritten_chat_is_stored_anew(self, run_json, docs):
        run_json("ingest", docs)
        rewritten = [{**CHAT[0], "text": "Where is the ladder?"}, *CHAT[1:3]]
        (docs / "chat.jsonl").write_text("\n".join(map(json.dumps, rewritten)))
        run_json("ingest", docs)
        hits = run_json("chat", "chat.jsonl", "--recall", "ladder", "-k", 9)["hits"]
        assert sorted(hit["metadata"]["turn_id"] for hit in hits) == ["t1", "t2", "t3"]
        assert hits[0]["text"] == "Where is the ladder?"

    def test_turns_said_after_the_file_stay(self, run, run_json, docs):
        run("ingest", docs)
        run("chat", "chat.jsonl", "--turn", "Ann: One more thing.")
        assert by_id(run_json("ingest", docs))["chat.jsonl"]["unchanged"]
        stored = {row["id"]: row for row in run_json("inspect")["stored"]}
        assert stored["chat.jsonl"]["chunks"] == 5

    def test_a_long_turn_is_recognised_again(self, run_json, docs):
        long = " ".join(f"Item {number} costs {number} crowns." for number in range(130))
        (docs / "chat.jsonl").write_text(json.dumps({"turn_id": "t1", "speaker": "Ann", "text": long}))
        assert by_id(run_json("ingest", docs / "chat.jsonl"))["chat.jsonl"]["embedded"] > 1
        assert by_id(run_json("ingest", docs / "chat.jsonl"))["chat.jsonl"]["unchanged"]

    def test_bad_files_are_named_and_the_others_stored(self, run, run_json, docs, make_pdf):
        (docs / "empty.txt").touch()
        (docs / "binary.txt").write_bytes(b"\x00\x01")
        (docs / "latin.txt").write_bytes("Grüße".encode("latin-1"))
        (docs / "broken.pdf").write_bytes(make_pdf([["Text."]])[:100])
        (docs / "broken.jsonl").write_text('{"text": "a"}\n{"text"\n')
        (docs / "folder").mkdir()
        result = run("ingest", docs, docs / "folder", docs / "gone.txt", code=1)
        lines = result.stderr.splitlines()
        named = [
            "empty.txt",
            "binary.txt",
            "latin.txt",
            "broken.pdf",
            "broken.jsonl, line 2",
            "folder",
            "gone.txt",
        ]
        assert len(lines) == len(named)
        assert all(line.startswith("error: ") for line in lines)
        for name in named:
            assert sum(f"{docs / name}:" in line for line in lines) == 1, name
        assert "3 files stored" in result.stdout
        assert {row["id"] for row in run_json("inspect")["stored"]} == {
            "bees.txt",
            "sub/train.md",
            "chat.jsonl",
        }

    def test_bad_files_in_json(self, run_json, docs):
        (docs / "empty.txt").touch()
        document = run_json("ingest", docs, code=1)
        assert len(document["files"]) == 3
        assert "empty.txt: the file is empty" in document["errors"][0]

    def test_nothing_to_store_makes_no_store(self, run, tmp_path):
        (tmp_path / "docs").mkdir()
        assert "no file in this folder" in run("ingest", "docs", code=1).stderr
        assert not (tmp_path / ".merger-plugins").exists()

    def test_files_of_other_kinds_are_mentioned(self, run, docs):
        (docs / "photo.png").write_bytes(b"\x89PNG")
        assert "1 .png" in run("ingest", docs).stderr

    def test_the_environment_names_the_store(self, run, docs, tmp_path, monkeypatch):
        monkeypatch.setenv("MERGER_PLUGINS_STORE", str(tmp_path / "elsewhere"))
        run("ingest", docs / "bees.txt")
        assert (tmp_path / "elsewhere").is_dir()
        assert not (tmp_path / ".merger-plugins").exists()

    def test_the_store_is_not_ingested_with_its_folder(self, run_json, docs, monkeypatch):
        monkeypatch.chdir(docs)
        run_json("ingest", ".")
        assert set(by_id(run_json("ingest", "."))) == {"bees.txt", "sub/train.md", "chat.jsonl"}


class TestInterruption:
    @pytest.fixture
    def ctrl_c(self):
        """A context with a real SIGINT when a method is called for the nth time."""

        @contextmanager
        def ctrl_c(owner, name, nth):
            original, calls = getattr(owner, name), []

            def interrupted(*arguments, **options):
                calls.append(name)
                if len(calls) == nth:
                    signal.raise_signal(signal.SIGINT)
                return original(*arguments, **options)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, name, interrupted)
                yield

        return ctrl_c

    def test_the_next_run_completes_the_documents(self, run, run_json, docs, ctrl_c, monkeypatch):
        monkeypatch.setattr(ingest_command, "_BYTES_AT_ONCE", 1)
        (docs / "chat.jsonl").unlink()
        with ctrl_c(MiniLMEmbedder, "embed_documents", 2):
            result = run("ingest", docs, code=130)
        assert "interrupted. Run the same command again" in result.stderr
        assert [row["id"] for row in run_json("inspect")["stored"]] == ["bees.txt"]
        rows = by_id(run_json("ingest", docs))
        assert rows["bees.txt"]["unchanged"]
        assert not rows["sub/train.md"]["unchanged"]
        assert len(run_json("inspect")["stored"]) == 2

    def test_the_next_run_completes_a_chat(self, run_json, docs, ctrl_c):
        with ctrl_c(MiniLMEmbedder, "embed_documents", 3):
            document = run_json("ingest", docs / "chat.jsonl", code=130)
        assert document["files"] == []
        assert "interrupted" in document["errors"][0]
        assert by_id(run_json("ingest", docs / "chat.jsonl"))["chat.jsonl"]["embedded"] == 2
        assert run_json("inspect")["chunks"] == 4

    def test_what_an_interrupted_store_answers_is_what_a_whole_one_answers(self, run_json, docs, ctrl_c):
        with ctrl_c(MiniLMEmbedder, "embed_documents", 3):
            run_json("ingest", docs, code=130)
        run_json("ingest", docs)
        run_json("ingest", docs, "--store", "whole")
        for level in ("chunk", "contextual", "document", "fused"):
            found = [
                run_json("search", "When is honey harvested?", "--level", level, "--store", store)["hits"]
                for store in (".merger-plugins", "whole")
            ]
            resumed, whole = (
                [(h["document_id"], h["position"], round(h["score"], 4)) for h in f] for f in found
            )
            assert resumed == whole

    def test_calibrating_again_completes_it(self, run, run_json, docs, ctrl_c):
        run("ingest", docs)
        with ctrl_c(CalibratedMerger, "rolling", 2):
            assert "Run merger-plugins calibrate again" in run("calibrate", code=130).stderr
        run("search", "honey", "--level", "document")  # from the vectors before
        run("calibrate")
        assert run_json("inspect")["calibration_vectors"] == run_json("inspect")["chunks"]
        assert run_json("search", "honey", "--level", "document")["hits"][0]["document_id"] == "bees.txt"


class TestSearch:
    @pytest.mark.parametrize("level", ["chunk", "section", "document", "fused", "contextual"])
    def test_the_right_document_comes_first(self, run, run_json, docs, level):
        run("ingest", docs)
        question = "When is honey harvested?"
        document = run_json("search", question, "--level", level, "-k", 2)
        assert document["level"] == level
        assert len(document["hits"]) == 2
        assert document["hits"][0]["document_id"] == "bees.txt"
        assert "bees.txt" in run("search", question, "--level", level).stdout.splitlines()[2]

    def test_calibrated_search(self, run, run_json, docs):
        run("ingest", docs)
        before = run_json("inspect")
        calibrated = run_json("calibrate")
        after = run_json("inspect")
        assert calibrated["vectors"] == after["calibration_vectors"] == after["chunks"]
        assert calibrated["fingerprint_before"] == before["fingerprint"]
        assert calibrated["fingerprint"] == after["fingerprint"] != before["fingerprint"]
        assert run_json("search", "honey")["hits"][0]["document_id"] == "bees.txt"
        (docs / "more.txt").write_text("Wax candles burn for nine hours.")
        assert by_id(run_json("ingest", docs))["bees.txt"]["unchanged"]

    def test_without_a_store(self, run, tmp_path):
        for command in (
            ["search", "x"],
            ["inspect"],
            ["calibrate"],
            ["export", "out"],
            ["chat", "c", "--recall", "x"],
        ):
            assert "There is no store in .merger-plugins" in run(*command, code=1).stderr
        assert list(tmp_path.iterdir()) == []

    def test_without_the_collection(self, run, docs):
        run("ingest", docs / "bees.txt")
        assert "no collection 'other'" in run("search", "x", "--collection", "other", code=1).stderr

    def test_a_server_that_does_not_answer(self, run):
        error = run("search", "x", "--store", "http://127.0.0.1:9", code=1).stderr
        assert "does not answer" in error

    def test_an_empty_question(self, run, docs):
        run("ingest", docs / "bees.txt")
        assert "empty" in run("search", " ", code=1).stderr


class TestChat:
    def test_turns_from_stdin_and_options(self, run, run_json):
        run("chat", "family", stdin='Ann: Where is the key?\n\n{"speaker": "Bo", "text": "Under the pot."}\n')
        document = run_json("chat", "family", "--turn", "Ann: Thanks!", "--turn", "Bo: Any time.")
        assert document["appended"] == 2
        hits = run_json("chat", "family", "--recall", "Where is the key?", "-k", 9)["hits"]
        assert sorted((hit["position"], hit["metadata"]["turn_id"], hit["speaker"]) for hit in hits) == [
            (0, "1", "Ann"),
            (1, "2", "Bo"),
            (2, "3", "Ann"),
            (3, "4", "Bo"),
        ]
        assert hits[0]["text"] == "Where is the key?"

    def test_recall_keeps_to_the_conversation(self, run, run_json):
        run("chat", "one", "--turn", "The key is under the flowerpot.")
        run("chat", "two", "--turn", "The plumber was paid.")
        hits = run_json("chat", "two", "--recall", "Where is the key?")["hits"]
        assert [hit["document_id"] for hit in hits] == ["two"]

    def test_appending_and_recalling_at_once(self, run):
        out = run("chat", "family", "--turn", "Bo: Under the pot.", "--recall", "the key").stdout
        assert "1 turns appended" in out
        assert "Bo: Under the pot." in out

    def test_an_unknown_conversation(self, run):
        run("chat", "one", "--turn", "Hello.")
        assert "no conversation 'two'" in run("chat", "two", "--recall", "x", code=1).stderr

    def test_no_turns(self, run):
        assert "No turn arrived" in run("chat", "one", stdin="\n", code=1).stderr

    def test_a_malformed_turn_stores_nothing(self, run, tmp_path):
        assert "line 2: not JSON" in run("chat", "one", stdin="Hello.\n{oops\n", code=1).stderr
        assert list(tmp_path.iterdir()) == []


class TestExport:
    def test_the_calibrated_merger_of_a_store(self, run, run_json, docs, tmp_path):
        pytest.importorskip("onnx")
        run("ingest", docs)
        run("calibrate")
        document = run_json("export", "out")
        assert document["source_fingerprint"] == run_json("inspect")["fingerprint"]
        assert "model.onnx" in document["files"]
        assert load_merger(tmp_path / "out").dimension == 384

    def test_a_merger_by_name(self, run, tmp_path):
        pytest.importorskip("onnx")
        run("export", "--merger", "mean", "--dimension", 8, "out")
        assert load_merger(tmp_path / "out").merge([[1.0] * 8, [1.0] * 8]).shape == (8,)

    def test_a_checkpoint(self, run, run_json, tmp_path):
        for package in ("torch", "transformers", "onnxscript"):
            pytest.importorskip(package, reason="install the extra train")
        from tests.synthesizers import D, trained

        trained(num_layers=1).save_pretrained(tmp_path / "checkpoint")
        document = run_json("export", "--merger", "checkpoint", "--precision", "int8", "out")
        vectors = np.random.default_rng(0).standard_normal((4, D)) + 1
        exported, original = load_merger(tmp_path / "out"), load_merger(tmp_path / "checkpoint")
        assert document["source_fingerprint"] == original.fingerprint
        assert exported.merge(vectors) @ original.merge(vectors) >= 0.999
        config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
        config["model_type"] = "somebody's"
        (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(config))
        assert "trust_remote_code" in run("export", "--merger", "checkpoint", "other", code=1).stderr

    def test_a_precision_that_a_merger_does_not_have(self, run):
        error = run("export", "--merger", "mean", "--precision", "int8", "out", code=1).stderr
        assert "leave out --precision" in error

    def test_a_merger_that_is_none(self, run):
        assert "no model folder" in run("export", "--merger", "nix", "out", code=1).stderr


class TestEveryCommand:
    def test_text_fits_and_is_plain(self, run, docs):
        outputs = [
            run(*arguments).stdout
            for arguments in (
                ["ingest", docs],
                ["search", "honey"],
                ["calibrate"],
                ["inspect"],
                ["chat", "c", "--turn", "x"],
            )
        ]
        for out in outputs:
            assert "\x1b" not in out
            assert max(map(len, out.splitlines())) <= 120

    def test_stderr_is_quiet(self, run, docs):
        for arguments in (
            ["ingest", docs],
            ["search", "honey"],
            ["calibrate"],
            ["inspect"],
            ["chat", "c", "--turn", "x"],
        ):
            assert run(*arguments).stderr == ""

    @pytest.mark.parametrize(
        "arguments",
        [
            ["nix"],
            ["ingest"],
            ["search"],
            ["search", "x", "--level", "nix"],
            ["search", "x", "-k", "0"],
            ["chat"],
            ["export"],
            ["demo", "--docs", "."],
            ["calibrate", "--nix"],
        ],
    )
    def test_usage_errors(self, run, arguments):
        assert run(*arguments, code=2).stdout == ""

    def test_errors_in_json_leave_one_document(self, run_json):
        document = run_json("search", "x", code=1)
        assert document["command"] == "search"
        assert "There is no store" in document["errors"][0]

    def test_version(self, run):
        assert run("--version").stdout == f"merger-plugins {__version__}\n"

    def test_a_store_in_use(self, run, docs):
        from merger_plugins.qdrant import QdrantStore

        with QdrantStore(".merger-plugins") as store:
            store.inspect()
            assert "in use by another process" in run("ingest", docs, code=1).stderr


def python(code, *, cwd, **options):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, text=True, capture_output=True, check=False, **options
    )


class TestProcess:
    @pytest.mark.parametrize("package", ["typer", "rich"])
    def test_without_the_extra_it_says_what_to_install(self, package, tmp_path):
        code = f"import sys; sys.modules[{package!r}] = None; from merger_plugins.cli import main; main()"
        result = python(code, cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2])})
        assert result.returncode == 1
        assert result.stdout == ""
        assert "pip install 'merger-plugins[cli]'" in result.stderr
        assert "Traceback" not in result.stderr

    @pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
    def test_progress_is_for_terminals(self, docs, tmp_path):
        code = "from merger_plugins.cli import main; main()"
        command = [sys.executable, "-c", code, "ingest", docs]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm"}
        main, terminal = os.openpty()
        shown = subprocess.run(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=terminal, check=True
        )
        os.close(terminal)
        assert b"ingesting" in os.read(main, 65_536)
        os.close(main)
        assert b"ingesting" not in shown.stdout
        piped = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=True)
        assert piped.stderr == b""


class TestChroma:
    @pytest.fixture(autouse=True)
    def chroma(self, monkeypatch):
        pytest.importorskip("chromadb")
        monkeypatch.setenv("MERGER_PLUGINS_STORE", "chroma:db")

    def test_every_command_works_on_it(self, run, run_json, docs, tmp_path):
        assert run("ingest", docs).stdout.startswith("3 files stored, 0 of them unchanged")
        assert (tmp_path / "db" / "chroma.sqlite3").is_file()
        assert all(row["unchanged"] for row in run_json("ingest", docs)["files"])
        assert run_json("search", "honey")["hits"][0]["document_id"] == "bees.txt"
        chunks = run_json("inspect")["chunks"]
        assert run_json("calibrate")["vectors"] == chunks
        chat = run_json("chat", "chat.jsonl", "--turn", "Ann: Thanks!", "--recall", "the key", "-k", "1")
        assert chat["appended"] == 1
        assert chat["hits"][0]["document_id"] == "chat.jsonl"
        inspection = run_json("inspect")
        assert (inspection["chunks"], inspection["contextual"]) == (chunks + 1, True)
        assert run_json("export", "out")["source_fingerprint"] == inspection["fingerprint"]

    def test_without_a_store(self, run, tmp_path):
        assert "There is no store in chroma:db" in run("search", "x", code=1).stderr
        assert list(tmp_path.iterdir()) == []

    def test_without_the_collection(self, run, docs):
        run("ingest", docs / "bees.txt")
        assert "no collection 'other'" in run("search", "x", "--collection", "other", code=1).stderr

    def test_a_server_that_does_not_answer(self, run):
        error = run("search", "x", "--store", "chroma:http://127.0.0.1:9", code=1).stderr
        assert "Chroma does not answer at http://127.0.0.1:9" in error

    def test_without_the_extra_it_says_what_to_install(self, tmp_path):
        (tmp_path / "db").mkdir()
        code = (
            "import sys; sys.modules['chromadb'] = None; sys.argv[1:] = ['search', 'x']\n"
            "from merger_plugins.cli import main; main()"
        )
        variables = {"PYTHONPATH": str(Path(__file__).parents[2]), "MERGER_PLUGINS_STORE": "chroma:db"}
        result = python(code, cwd=tmp_path, env=variables)
        assert result.returncode == 1
        assert "pip install 'merger-plugins[chroma]'" in result.stderr
