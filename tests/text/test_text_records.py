"""Reading data files: every form is understood, and every flaw is named with its place."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.errors import DataError
from mlx_companion.text.records import Message, ReadReport, Sample, iter_samples, read_samples

CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Air scatters blue light."},
    ]
}
visible = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(str.strip)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def turns(sample: Sample) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in sample.messages]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (CHAT, [(m["role"], m["content"]) for m in CHAT["messages"]]),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]},
            [("user", "Hi"), ("assistant", "Yes?")],
        ),
        ({"prompt": "2+2?", "completion": "4"}, [("user", "2+2?"), ("assistant", "4")]),
        (
            {"instruction": "Add.", "input": "2 and 3", "output": "5"},
            [("user", "Add.\n\n2 and 3"), ("assistant", "5")],
        ),
        (
            {"instruction": "Greet.", "input": "", "output": "Hello."},
            [("user", "Greet."), ("assistant", "Hello.")],
        ),
    ],
    ids=["chat", "sharegpt", "pair", "alpaca", "alpaca-no-input"],
)
def test_conversation_forms(tmp_path: Path, record: dict, expected: list) -> None:
    path = write(tmp_path, "data.jsonl", json.dumps(record) + "\n")
    (sample,) = read_samples(path)
    assert turns(sample) == expected
    assert sample.text is None
    assert sample.source == f"{path}:1"


def test_forms_may_be_mixed_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    rows = [json.dumps(CHAT), "", json.dumps({"text": "A document."}), "   "]
    samples = read_samples(write(tmp_path, "data.jsonl", "\n".join(rows)))
    assert [bool(sample.messages) for sample in samples] == [True, False]
    assert samples[1].text == "A document."
    assert samples[1].source.endswith(":3")


def test_txt_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path, "diary.txt", b"\xef\xbb\xbf\r\nMonday.\r\n\r\nTuesday.\r\n")
    (sample,) = read_samples(path)
    assert sample.text == "Monday.\n\nTuesday."


def test_json_list_and_single_object(tmp_path: Path) -> None:
    many = write(tmp_path, "many.json", json.dumps([CHAT, {"text": "Two."}], indent=2))
    one = write(tmp_path, "one.json", json.dumps({"text": "One."}))
    assert len(read_samples(many)) == 2
    assert [sample.text for sample in read_samples(one)] == ["One."]


def test_csv_header_decides_and_quoted_cells_may_hold_line_ends(tmp_path: Path) -> None:
    text = 'id,prompt,completion\r\n1,"Two\r\nlines, and a comma",Fine.\r\n\r\n2,Next,Done.\r\n'
    samples = read_samples(write(tmp_path, "pairs.csv", b"\xef\xbb\xbf" + text.encode()))
    assert turns(samples[0])[0] == ("user", "Two\r\nlines, and a comma")
    assert turns(samples[1]) == [("user", "Next"), ("assistant", "Done.")]
    assert samples[1].source.endswith(":5")


def test_folder_is_read_in_sorted_order_without_hidden_or_foreign_files(tmp_path: Path) -> None:
    write(tmp_path, "b/two.txt", "Two.")
    write(tmp_path, "a/one.JSONL", '{"text": "One."}')
    write(tmp_path, "c.csv", "text\nThree.\n")
    write(tmp_path, ".cache/hidden.txt", "Never.")
    write(tmp_path, "notes.md", "Never.")
    assert [sample.text for sample in read_samples(tmp_path)] == ["One.", "Two.", "Three."]


@given(st.lists(st.tuples(visible, visible), min_size=1, max_size=5))
def test_any_text_survives_jsonl_and_csv(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    lines = [
        json.dumps({"prompt": prompt, "completion": reply}, ensure_ascii=index % 2 == 0)
        for index, (prompt, reply) in enumerate(pairs)
    ]
    table = io.StringIO()
    csv.writer(table, quoting=csv.QUOTE_ALL).writerows([("prompt", "completion"), *pairs])
    expected = [[("user", prompt), ("assistant", reply)] for prompt, reply in pairs]
    for name, content in (("d.jsonl", "\n".join(lines)), ("d.csv", table.getvalue())):
        assert [turns(sample) for sample in read_samples(write(folder, name, content))] == expected


def chat_with(**turn: object) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "Hi"}, turn]})


BAD_LINES = {
    "bad json": ('{"text": "a"', None, "bad JSON"),
    "not an object": ("[1, 2]", None, "expected an object"),
    "number": ("42", None, "got a number"),
    "no form": ('{"title": "x", "body": "y"}', None, "body, title"),
    "missing completion": ('{"prompt": "a"}', "completion", "missing"),
    "missing prompt": ('{"completion": "a"}', "prompt", "missing"),
    "missing output": ('{"instruction": "a"}', "output", "missing"),
    "alpaca input type": ('{"instruction": "a", "input": 5, "output": "b"}', "input", "number"),
    "empty text": ('{"text": "  \\n"}', "text", "empty"),
    "null": ('{"text": null}', "text", "null"),
    "boolean": ('{"text": true}', "text", "boolean"),
    "nul": ('{"text": "a\\u0000b"}', "text", "NUL"),
    "surrogate": ('{"text": "a\\ud800b"}', "text", "surrogate"),
    "messages type": ('{"messages": "hello"}', "messages", "got a string"),
    "no messages": ('{"messages": []}', "messages", "empty list"),
    "turn type": ('{"messages": ["hi"]}', "messages[0]", "got a string"),
    "no role": (chat_with(content="a"), "messages[1].role", "missing"),
    "unknown role": (chat_with(role="bot", content="a"), "messages[1].role", "assistant"),
    "content list": (chat_with(role="assistant", content=["a"]), "messages[1].content", "a list"),
    "empty content": (chat_with(role="assistant", content=""), "messages[1].content", "empty"),
    "no assistant": (chat_with(role="user", content="a"), "messages", "no assistant turn"),
    "assistant first": (
        '{"messages": [{"role": "assistant", "content": "a"}]}',
        "messages",
        "speaks first",
    ),
    "system only": ('{"messages": [{"role": "system", "content": "a"}]}', "messages", "assistant"),
    "sharegpt role": (
        '{"conversations": [{"from": "user2", "value": "a"}]}',
        "conversations[0].from",
        "human",
    ),
    "huge number": ('{"text": ' + "9" * 5000 + "}", None, "bad JSON"),
    "deep": ('{"text": ' + "[" * 100_000, None, "bad JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path, name: str) -> None:
    bad, field, words = BAD_LINES[name]
    path = write(tmp_path, "data.jsonl", f'{{"text": "fine"}}\n\n{bad}\n{{"text": "also"}}\n')
    with pytest.raises(DataError) as caught:
        read_samples(path)
    assert (caught.value.path, caught.value.line, caught.value.field) == (path, 3, field)
    assert f"{path}:3" in str(caught.value)
    assert words in str(caught.value)

    report = ReadReport()
    samples = read_samples(path, on_error="skip", report=report)
    assert [sample.text for sample in samples] == ["fine", "also"]
    assert (report.read, [error.line for error in report.skipped]) == (2, [3])


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', 2, "byte 0xe9 at byte offset 27"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "caf\xe9"}\n', 1, "byte offset 16"),
        ("a.txt", b"one\ntwo\x00\n", 2, "NUL byte at byte offset 7"),
        ("a.txt", "text".encode("utf-16"), 1, "not UTF-8|NUL"),
        ("a.json", b'[{"text": "\xff"}]', 1, "not UTF-8"),
        ("a.json", b'[\n{"text": "a"},\n{"text" "b"}]', 3, "bad JSON at column 9"),
        ("a.csv", b"text\nfine\nbad \xe9\n", 3, "not UTF-8"),
        ("a.csv", b"prompt,completion\na,b\nc\n", 3, "1 cells where the header names 2"),
        ("a.csv", b"prompt,completion\na,b\nc,d,e\n", 3, "3 cells where the header names 2"),
        ("a.csv", b"prompt,completion\na,b\nc,\n", 3, "is empty"),
        ("a.csv", b"text,text\na,b\n", 1, "column twice"),
        ("a.csv", b"title\na\n", 2, "none of the known forms"),
        ("a.csv", b'text\n"a" b\n', 2, "bad CSV"),
        ("a.csv", b'text\n"never closed\n', 2, "bad CSV"),
    ],
)
def test_a_bad_file_is_named_by_line(
    tmp_path: Path, name: str, content: bytes, line: int, words: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=words) as caught:
        read_samples(path)
    assert (caught.value.path, caught.value.line) == (path, line)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \r\n\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(DataError, match="empty"):
        read_samples(write(tmp_path, name, content))


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"holds no .*jsonl"):
        read_samples(tmp_path / "folder")
    with pytest.raises(DataError, match="no such file or folder"):
        read_samples(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match=r"\(\.docx\)"):
        read_samples(write(tmp_path, "essay.docx", "x"))


def test_skipping_goes_on_to_the_next_file_but_never_ends_with_nothing(tmp_path: Path) -> None:
    write(tmp_path, "a.json", "{")
    write(tmp_path, "b.txt", "")
    with pytest.raises(DataError, match=r"no usable sample \(2 rows"):
        read_samples(tmp_path, on_error="skip")
    write(tmp_path, "c.csv", b"text\nbad \xe9\ngood\n")
    report = ReadReport()
    assert [s.text for s in read_samples(tmp_path, on_error="skip", report=report)] == ["good"]
    assert [error.path.name for error in report.skipped] == ["a.json", "b.txt", "c.csv"]


def test_large_files_stream(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    path.write_text('{"text": "one line"}\n' * 3 + "{broken\n")
    stream = iter_samples(path)
    assert [next(stream).text for _ in range(3)] == ["one line"] * 3
    with pytest.raises(DataError):
        next(stream)


def test_a_csv_cell_may_be_a_whole_document(tmp_path: Path) -> None:
    document = "word " * 60_000
    (sample,) = read_samples(write(tmp_path, "long.csv", f"text\n{document}\n"))
    assert sample.text == document


def test_a_sample_is_either_a_conversation_or_a_text() -> None:
    with pytest.raises(DataError, match="exactly one"):
        Sample()
    with pytest.raises(DataError, match="exactly one"):
        Sample(messages=(Message("user", "a"),), text="b")
