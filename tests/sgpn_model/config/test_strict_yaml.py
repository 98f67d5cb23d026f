"""Option files as text: which numbers there are, which keys, and files that stand for too much or for nothing."""

import math
import os

import pytest
import yaml

from sgpn_arch.errors import OptionError, Problems
from sgpn_model.config.reading import read_options
from sgpn_model.config.strict_yaml import dump, parse


def value(text):
    problems = Problems()
    found = parse(text, problems, "here")
    problems.tell()
    return found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("1.0e6", 1e6), ("1e6", 1e6), ("1.5E+3", 1500.0), (".5e3", 500.0), ("-.5", -0.5), ("+.5", 0.5), ("1.", 1.0)],
        *[("1_000", 1000), ("1_000.5", 1000.5), ("010", 10), ("08", 8), ("0x1F", 31), ("0o17", 15), ("0b11", 3), ("-7", -7)],
        *[("-.inf", -math.inf), (".Inf", math.inf), ("1e999", math.inf)],
    ],
)  # fmt: skip
def test_numbers(text, number):
    found = value(f"a: {text}")["a"]
    assert found == number and type(found) is type(number)


@pytest.mark.parametrize(
    "text", ["1:30", "2020-01-01", "1e", "e6", "1.2.3", "0x", "0b2", "'1e6'", '"1.0e6"', "=", "-", ".", "1 e6"]
)
def test_text_that_is_no_number(text):
    assert value(f"a: {text}" if text != "-" else "a: '-'")["a"] == text.strip("'\"")


@pytest.mark.parametrize(
    "written", ["1e6", "1.0e6", ".5e3", "010", "0o7", "yes", "~", "1:30", "2020-01-01", "a: b", "", "é"]
)
def test_text_is_written_so_that_it_is_read_as_text_here_and_elsewhere(written):
    options = {"a": [written, 1e-6, 1e22, 3, math.inf, None, True]}
    assert value(dump(options)) == options == yaml.safe_load(dump(options))
    assert value(f"a: {dump(written, inline=True)}")["a"] == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [*x]", "line 1, column 4: a section that contains itself"),
        ("a: &x\n  b: {c: *x}", "line 1, column 4: a section that contains itself"),
        ("a: &x {<<: *x}", "a section that contains itself"),
        ("a: " + "[" * 33 + "]" * 33, "nested more than 32 levels deep"),
        ("a: " + "[" * 3000, "nested more than 32 levels deep"),
        ("a: 1" + "0" * 400, "a number of 401 digits"),
        ("a: 1" + "0" * 5000, "a number of 5001 digits"),
        ("a: !!int x", "line 1, column 4: 'x' is no number"),
        ('a: "\\0"', "line 1, column 4: text with a character that no text has"),
        ('a: "\\ud800"', "text with a character that no text has"),
        ("a: \0", "unacceptable character #x0000"),
        ("a:\n\tb: 1", "line 2, column 1: .*found character '.t' that cannot start any token"),
        ("a: [1, 2", "line 1, column 9: while parsing a flow sequence, expected ',' or ']'"),
        ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_refusals_are_one_line_that_says_where(text, message):
    with pytest.raises(OptionError, match=message) as caught:
        value(text)
    assert str(caught.value).startswith("here: cannot be read: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("merge", [False, True])
def test_a_file_that_stands_for_a_thousand_millions(merge):
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, 30):
        both = f"*a{level - 1}, *a{level - 1}"
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{both}]}}" if merge else f"[{both}]"))
    with pytest.raises(OptionError, match="more than 100000 values"):
        value("\n".join(lines))


def test_keys_that_cannot_be_used_are_all_told_with_their_lines():
    problems = Problems()
    found = parse("a: 1\nb: {c: 1, on: 2,\n c: 3}\n? [1]\n: 2\na: 4\na: 5\n<<: {d: 6}\n", problems, "here")
    assert found == {"a": 5, "b": {"c": 3}, "d": 6}
    assert [(problem.key, problem.text.partition(";")[0]) for problem in problems.found] == [
        ("b.True", "keys are text, but YAML reads this one as True (line 2)"),
        ("b.c", "written twice, in lines 2 and 3"),
        ("a sequence", "keys are text, but YAML reads this one as a sequence (line 4)"),
        ("a", "written twice, in lines 1 and 6"),
        ("a", "written twice, in lines 6 and 7"),
    ]
    assert {problem.source for problem in problems.found} == {"here"}


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "holds nothing, expected a mapping"),
            (b"# a comment\n", "holds nothing, expected a mapping"),
            ("name: é".encode("latin-1"), "not text in UTF-8"),
            ("name: a".encode("utf-16"), "not text in UTF-8"),
            (b"name: a\n" * 40000, "has more than 256 KiB"),
            (b"_base_: 5", "_base_: expected a file or a list of files, found .5."),
            (b"_base_: {a: b.yml}", "_base_: expected a file or a list of files"),
            (b"_base_: [[b.yml]]", "_base_: expected a file or a list of files"),
            (b"_base_: ''", "_base_: expected a file or a list of files"),
            (b"_base_: [options.yml]", "inherits from itself"),
            (b"_base_: " + b"n" * 5000 + b".yml", "no such option file"),
        ],
    )
    def test_that_say_nothing_usable(self, tmp_path, content, message):
        (tmp_path / "options.yml").write_bytes(content)
        with pytest.raises(OptionError, match=message):
            read_options(tmp_path / "options.yml")

    def test_a_mark_at_the_beginning_is_no_part_of_the_first_key(self, tmp_path):
        (tmp_path / "options.yml").write_text("\ufeffname: x\n", encoding="utf-8")
        assert read_options(tmp_path / "options.yml")[0] == {"name": "x"}

    def test_a_pipe_or_a_folder_is_none(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.yml")
        (tmp_path / "folder.yml").mkdir()
        for name in ("pipe.yml", "folder.yml"):
            with pytest.raises(OptionError, match=f"{name}: cannot be read: it is not a file"):
                read_options(tmp_path / name)

    def test_files_that_inherit_each_other_many_times(self, tmp_path):
        for number in range(30):
            after = f"_base_: [{number + 1}.yml, {number + 1}.yml]\n" if number < 29 else ""
            (tmp_path / f"{number}.yml").write_text(f"{after}name: x\n")
        with pytest.raises(OptionError, match="inherits from more than 100 files"):
            read_options(tmp_path / "0.yml")

    def test_the_home_folder_can_be_written_as_in_a_shell(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "base.yml").write_text("name: x\n")
        (tmp_path / "options.yml").write_text("_base_: ~/base.yml\n")
        assert read_options("~/options.yml")[0] == {"name": "x"}
