"""Every format as text, and every way a file can be bad."""

import json
import os
from pathlib import Path

import pytest

from merger_plugins.cli.readers import (
    Conversation,
    Document,
    Source,
    Turn,
    find_sources,
    parse_turns,
    read_source,
)
from merger_plugins.errors import DocumentError

pytest.importorskip("markdown_it")
pytest.importorskip("bs4")
pytest.importorskip("pypdf")


@pytest.fixture
def read(tmp_path):
    def read(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_source(Source(name, path, path.stat().st_size))

    return read


@pytest.fixture
def refused(read):
    """The message that a file is refused with."""

    def refused(name, content):
        with pytest.raises(DocumentError) as caught:
            read(name, content)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused


class TestText:
    def test_comes_as_it_is(self, read):
        assert read("a.txt", "One.\n\nTwo – ü.\n") == Document("a.txt", "One.\n\nTwo – ü.\n")

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_a_byte_order_mark_tells_the_encoding(self, read, encoding):
        assert read("a.txt", "Grüße".encode(encoding)).text == "Grüße"

    @pytest.mark.parametrize("end", ["\r\n", "\r"])
    def test_line_ends_of_other_systems(self, read, end):
        assert read("a.txt", f"One.{end}{end}Two.").text == "One.\n\nTwo."

    def test_a_suffix_in_capitals(self, read):
        assert read("A.TXT", "One.").text == "One."

    def test_another_encoding_is_refused_with_the_byte_and_the_remedy(self, refused):
        message = refused("a.txt", "Grüße".encode("latin-1"))
        assert "byte 2" in message
        assert "iconv" in message

    def test_a_binary_file_is_refused(self, refused):
        assert "binary" in refused("a.txt", b"\x7fELF\x02\x00\x00")

    @pytest.mark.parametrize("content", ["", " \n\t\n"])
    def test_an_empty_file_is_refused(self, refused, content):
        assert "empty" in refused("a.txt", content)

    def test_an_unknown_kind_is_refused_with_those_that_are_read(self, refused):
        message = refused("a.docx", "PK")
        assert ".docx" in message
        assert ".md" in message

    def test_a_file_that_is_gone(self, tmp_path):
        with pytest.raises(DocumentError, match=r"gone\.txt: No such file"):
            read_source(Source("gone.txt", tmp_path / "gone.txt", 1))


class TestMarkdown:
    def test_markup_goes_and_words_stay(self, read):
        text = read(
            "a.md",
            "# The *manual*\n\n"
            "Press `on`, see [the **chart**](http://x/y) and\nwait ![a red lamp](lamp.png).\n"
            "\n- first\n- second\n\n> quoted\n\n```sh\nrun --now\n```\n",
        ).text
        assert text.split("\n\n") == [
            "The manual",
            "Press on, see the chart and wait a red lamp.",
            "first",
            "second",
            "quoted",
            "run --now",
        ]

    def test_a_table_gives_a_line_a_row(self, read):
        text = read("a.md", "| part | size |\n|---|---|\n| seal | 9 mm |\n").text
        assert text.split("\n\n") == ["part | size", "seal | 9 mm"]

    def test_front_matter_is_no_text(self, read):
        assert read("a.md", "---\ntitle: Secret\n---\n\nBody.").text == "Body."

    def test_a_rule_is_no_front_matter(self, read):
        assert "Between." in read("a.md", "Before.\n\n---\n\nBetween.\n\n---\n\nAfter.").text

    def test_html_inside(self, read):
        assert read("a.md", "<div>shown<script>hidden</script></div>\n\nBody <b>bold</b>.").text == (
            "shown\n\nBody bold."
        )

    def test_markup_without_text_is_refused(self, refused):
        assert "no text" in refused("a.md", "---\n")


class TestHtml:
    def test_paragraphs_without_what_is_not_seen(self, read):
        text = read(
            "a.html",
            "<!DOCTYPE html><html><head><title>Guide</title><style>p {color: red}</style></head><body>"
            "<!-- note --><nav>Home</nav><h1>Taps</h1>"
            "<p>Turn  the\n<b>left</b> tap,<br>then wait &amp; see.</p>"
            "<script>track()</script><ul><li>one</li><li>two</li></ul></body></html>",
        ).text
        assert text.split("\n\n") == [
            "Guide",
            "Home",
            "Taps",
            "Turn the left tap,\nthen wait & see.",
            "one",
            "two",
        ]

    def test_a_table_gives_a_line_a_row(self, read):
        text = read(
            "a.htm", "<table><tr><th>part</th><th>size</th></tr><tr><td>seal</td><td>9</td></tr></table>"
        ).text
        assert text.split("\n\n") == ["part | size", "seal | 9"]

    def test_preformatted_text_keeps_its_lines(self, read):
        assert read("a.html", "<pre>a\n  b</pre>").text.split() == ["a", "b"]
        assert "a\n" in read("a.html", "<pre>a\n  b</pre>").text

    def test_the_page_declares_its_encoding(self, read):
        page = '<meta charset="iso-8859-1"><p>Grüße</p>'.encode("latin-1")
        assert read("a.html", page).text == "Grüße"

    def test_a_binary_file_is_refused(self, refused):
        assert "binary" in refused("a.html", b"\x00\x01\x02")

    def test_markup_without_text_is_refused(self, refused):
        assert "no text" in refused("a.html", "<p></p><script>x</script>")


class TestPdf:
    def test_lines_broken_by_the_page_are_joined(self, read, make_pdf):
        pages = [
            [
                "The valve opens at nine bar and",
                "closes again when the pres-",
                "sure has fallen below two of it.",
                "End.",
            ],
            ["Second page."],
        ]
        assert read("a.pdf", make_pdf(pages)).text == (
            "The valve opens at nine bar and closes again when the pressure has fallen below two of it. End."
            "\n\nSecond page."
        )

    def test_short_lines_stay_apart(self, read, make_pdf):
        text = read("a.pdf", make_pdf([["Cleaning", "Rinse the group for five seconds after use."]])).text
        assert text == "Cleaning\nRinse the group for five seconds after use."

    @pytest.mark.parametrize("part", [slice(120), slice(40, None), slice(9)])
    def test_a_damaged_one_is_refused(self, refused, make_pdf, part, capfd):
        assert "damaged" in refused("a.pdf", make_pdf([["Text."]])[part])
        assert capfd.readouterr() == ("", "")

    def test_one_without_text_is_refused(self, refused, make_pdf):
        assert "OCR" in refused("a.pdf", make_pdf([[]]))

    def test_one_behind_a_password_is_refused(self, refused, make_pdf, tmp_path):
        import pypdf

        writer = pypdf.PdfWriter()
        (tmp_path / "plain.pdf").write_bytes(make_pdf([["Secret."]]))
        writer.append(tmp_path / "plain.pdf")
        writer.encrypt("word", algorithm="RC4-128")
        writer.write(tmp_path / "locked.pdf")
        assert "password" in refused("locked.pdf", (tmp_path / "locked.pdf").read_bytes())


class TestChats:
    def test_all_fields(self, read):
        rows = [
            {
                "turn_id": "a",
                "session": "s1",
                "time": "2026-01-01T10:00:00Z",
                "speaker": "Ann",
                "text": "Hello.",
            },
            {"role": "user", "content": "Hi.", "timestamp": 17},
        ]
        assert read("c.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n") == Conversation(
            "c.jsonl",
            (
                Turn("Hello.", "a", "Ann", "s1", "2026-01-01T10:00:00Z"),
                Turn("Hi.", "2", "user", None, 17),
            ),
        )

    def test_a_malformed_line_is_named(self, refused):
        assert "line 3: not JSON" in refused("c.jsonl", '{"text": "a"}\n\n{"text": "b"\n')

    @pytest.mark.parametrize("line", ["[]", '"text"', "{}", '{"text": 3}', '{"text": " "}'])
    def test_a_line_that_is_no_turn_is_named(self, refused, line):
        message = refused("c.jsonl", f'{{"text": "a"}}\n{line}\n')
        assert "line 2" in message
        assert "'text'" in message

    def test_the_same_id_twice_is_refused(self, refused):
        assert "'1'" in refused("c.jsonl", '{"turn_id": 1, "text": "a"}\n{"turn_id": "1", "text": "b"}\n')

    def test_lines_typed_by_hand(self):
        turns = parse_turns(
            ["Ann Lee: Where is it?\n", "\n", "in the box at 10:30\n", '{"speaker": "Bo", "text": "Yes."}\n'],
            name="stdin",
        )
        assert turns == [
            Turn("Where is it?", speaker="Ann Lee"),
            Turn("in the box at 10:30"),
            Turn("Yes.", speaker="Bo"),
        ]

    def test_half_a_surrogate_pair_is_refused(self, refused):
        assert "Unicode" in refused("c.jsonl", '{"text": "\\ud800"}')

    def test_json_typed_wrong(self):
        with pytest.raises(DocumentError, match="stdin, line 2: not JSON"):
            parse_turns(["one\n", "{oops\n"], name="stdin")


class TestFinding:
    def test_ids_are_paths_inside_the_folder_named(self, tmp_path):
        for name in (
            "docs/b.txt",
            "docs/sub/a.md",
            "docs/.hidden.txt",
            "docs/.git/x.txt",
            "docs/x.png",
            "docs/README",
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("x")
        (tmp_path / "single.html").write_text("x")
        found = find_sources([tmp_path / "docs", tmp_path / "single.html"])
        assert [source.id for source in found.sources] == ["b.txt", "single.html", "sub/a.md"]
        assert found.errors == []
        assert found.others == {".png": 1, "no suffix": 1}

    def test_sizes_are_in_bytes(self, tmp_path):
        (tmp_path / "a.txt").write_text("ü")
        assert find_sources([tmp_path]).sources[0].size == 2

    def test_an_empty_folder_and_a_missing_path(self, tmp_path):
        (tmp_path / "empty").mkdir()
        found = find_sources([tmp_path / "empty", tmp_path / "gone"])
        assert found.sources == []
        assert "no file" in found.errors[0]
        assert "gone" in found.errors[1]

    def test_two_files_of_one_id(self, tmp_path):
        for name in ("a/x.txt", "b/x.txt"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_text("x")
        found = find_sources([tmp_path / "a", tmp_path / "b"])
        assert [source.path for source in found.sources] == [tmp_path / "a/x.txt"]
        assert "same id, 'x.txt'" in found.errors[0]

    def test_one_file_named_twice_is_read_once(self, tmp_path):
        (tmp_path / "x.txt").write_text("x")
        found = find_sources([tmp_path, tmp_path / "x.txt"])
        assert len(found.sources) == 1
        assert found.errors == []

    def test_a_link_into_nothing(self, tmp_path):
        (tmp_path / "x.txt").symlink_to(tmp_path / "gone")
        found = find_sources([tmp_path])
        assert found.sources == []
        assert "x.txt: No such file" in found.errors[0]

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
    def test_a_folder_that_may_not_be_read(self, tmp_path):
        (tmp_path / "shut").mkdir(mode=0)
        (tmp_path / "x.txt").write_text("x")
        found = find_sources([tmp_path])
        assert "shut: Permission denied" in found.errors[0]
        assert len(found.sources) == 1

    def test_the_demo_corpus(self):
        import merger_plugins

        folder = Path(merger_plugins.__file__).parent / "demo" / "corpus"
        contents = [read_source(source) for source in find_sources([folder]).sources]
        assert sum(isinstance(content, Document) for content in contents) == 16
        assert [len(content.turns) for content in contents if isinstance(content, Conversation)] == [168]
