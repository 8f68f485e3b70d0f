"""A .kitignore ignores the same paths as moby does. Most expected results come from moby.

The last tests are about layers whose paths contain each other.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.errors import KitfileError
from kitfs.ops.pack.ignore import IgnoreRules, is_within, left_out

# (pattern, path, whether it matches) from the tables of moby/patternmatcher v0.6.0 (TestMatches, TestMatch), without
# slashes after paths
MOBY: list[tuple[str, str, bool]] = [
    ("**", "file", True),
    ("**/", "file", True),
    ("**", "dir/file", True),
    ("**/", "dir/file", True),
    ("**/**", "dir/file", True),
    ("dir/**", "dir/file", True),
    ("dir/**", "dir/dir2/file", True),
    ("**/dir", "dir", True),
    ("**/dir", "dir/file", True),
    ("**/dir2/*", "dir/dir2/file", True),
    ("**/dir2/**", "dir/dir2/dir3/file", True),
    ("**file", "file", True),
    ("**file", "dir/file", True),
    ("**/file", "dir/file", True),
    ("**file", "dir/dir/file", True),
    ("**/file", "dir/dir/file", True),
    ("**/file*", "dir/dir/file", True),
    ("**/file*", "dir/dir/file.txt", True),
    ("**/file*txt", "dir/dir/file.txt", True),
    ("**/file*.txt", "dir/dir/file.txt", True),
    ("**/file*.txt*", "dir/dir/file.txt", True),
    ("**/**/*.txt", "dir/dir/file.txt", True),
    ("**/**/*.txt2", "dir/dir/file.txt", False),
    ("**/*.txt", "file.txt", True),
    ("**/**/*.txt", "file.txt", True),
    ("a**/*.txt", "a/file.txt", True),
    ("a**/*.txt", "a/dir/file.txt", True),
    ("a**/*.txt", "a/dir/dir/file.txt", True),
    ("a/*.txt", "a/dir/file.txt", False),
    ("a/*.txt", "a/file.txt", True),
    ("a/*.txt**", "a/file.txt", True),
    ("a[b-d]e", "ae", False),
    ("a[b-d]e", "ace", True),
    ("a[b-d]e", "aae", False),
    ("a[^b-d]e", "aze", True),
    (".*", ".foo", True),
    (".*", "foo", False),
    ("abc.def", "abcdef", False),
    ("abc.def", "abc.def", True),
    ("abc.def", "abcZdef", False),
    ("abc?def", "abcZdef", True),
    ("abc?def", "abcdef", False),
    ("a\\\\", "a\\", True),
    ("**/foo/bar", "foo/bar", True),
    ("**/foo/bar", "dir/foo/bar", True),
    ("**/foo/bar", "dir/dir2/foo/bar", True),
    ("abc/**", "abc", False),
    ("abc/**", "abc/def", True),
    ("abc/**", "abc/def/ghi", True),
    ("**/.foo", ".foo", True),
    ("**/.foo", "bar.foo", False),
    ("a(b)c/def", "a(b)c/def", True),
    ("a(b)c/def", "a(b)c/xyz", False),
    ("a.|)$(}+{bc", "a.|)$(}+{bc", True),
    (
        "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
        "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
        True,
    ),
    ("dist/*.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", True),
    ("a\\*b", "a*b", True),
    ("abc", "abc", True),
    ("*", "abc", True),
    ("*c", "abc", True),
    ("a*", "a", True),
    ("a*", "abc", True),
    ("a*", "ab/c", True),
    ("a*/b", "abc/b", True),
    ("a*/b", "a/c/b", False),
    ("a*b*c*d*e*/f", "axbxcxdxe/f", True),
    ("a*b*c*d*e*/f", "axbxcxdxexxx/f", True),
    ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", False),
    ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", False),
    ("a*b?c*x", "abxbbxdbxebxczzx", True),
    ("a*b?c*x", "abxbbxdbxebxczzy", False),
    ("ab[c]", "abc", True),
    ("ab[b-d]", "abc", True),
    ("ab[e-g]", "abc", False),
    ("ab[^c]", "abc", False),
    ("ab[^b-d]", "abc", False),
    ("ab[^e-g]", "abc", True),
    ("a\\*b", "ab", False),
    ("a?b", "a☺b", True),
    ("a[^a]b", "a☺b", True),
    ("a???b", "a☺b", False),
    ("a[^a][^a][^a]b", "a☺b", False),
    ("[a-ζ]*", "α", True),
    ("*[a-ζ]", "A", False),
    ("a?b", "a/b", False),
    ("a*b", "a/b", False),
    ("[\\]a]", "]", True),
    ("[\\-]", "-", True),
    ("[x\\-]", "x", True),
    ("[x\\-]", "-", True),
    ("[x\\-]", "z", False),
    ("[\\-x]", "x", True),
    ("[\\-x]", "-", True),
    ("[\\-x]", "a", False),
    ("*x", "xxx", True),
]

# (.kitignore, path, whether it is ignored by v0.6.0's ReadAll and MatchesOrParentMatches plus kit's four patterns)
RECORDED: list[tuple[bytes, str, bool]] = [
    (b"a|b*", "ax", True),
    (b"a|b*", "cbx", True),
    (b"a|b*", "cx", False),
    (b"a|b", "a", False),
    (b"a|b", "a|b", True),
    (b"x{2}*", "xx1", True),
    (b"x{2}*", "x{2}1", False),
    (b"x{2}", "x{2}", True),
    (b"*.{bin,pt}", "w.pt", False),
    (b"*.{bin,pt}", "w.{bin,pt}", True),
    (b"^a*", "ab", True),
    (b"^a*", "^ab", False),
    (b"^a", "^a", True),
    (b"v[[:digit:]]*", "v1", True),
    (b"v[[:digit:]]*", "vd", False),
    (b"v[[:^digit:]]", "vd", True),
    (b"v[*]", "v*", False),
    (b"v[*]", "v[]", True),
    (b"v[*]", "v[[]", True),
    (b"v[?]", "v[]", True),
    (b"v[?]", "v?", False),
    (b"a?b", "a\n", False),
    (b"a?b", "a\nb", True),
    (b"**/b*", "a\nc/b", False),
    (b"**/b*", "ac/b", True),
    (b"a/**/b", "a/b", True),
    (b"a/**/b", "a/x/y/b", True),
    (b"a/**/b", "ab", False),
    (b"a**b", "ab", True),
    (b"a**b", "a/b", True),
    (b"a**b", "axb", False),
    (b"a**", "ab/c", True),
    (b"\xe9*", "\udce9t\udce9", True),
    (b"\xe9*", "\udce8", True),
    (b"\xe9", "\udce9", True),
    (b"\xe9", "\udce8", False),
    (b"?", "\udce9", True),
    (b"?", "\udce9\udce8", False),
    (b"[\xef\xbf\xbd]", "\udce9", True),
    (b"\xe6\x97\xa5?", "\u65e5\u672c", True),
    (b"*", "a/b", True),
    (b"*", ".", True),
    (b"a/*", "a", False),
    (b"a/*", "a/b/c", True),
    (b"../a", "a", False),
    (b"./a/", "a", True),
    (b"/a//b/../c", "a/c", True),
    (b"/", "a", False),
    (b".", ".", True),
    (b"a\\**", "a*b", True),
    (b"a\\**", "axb", False),
    (b"\\#a", "#a", True),
    (b" #a", "#a", True),
    (b"#a", "#a", False),
    (b"\xef\xbb\xbf#a\n*.b", "#a", False),
    (b"\xef\xbb\xbf*.b", "x.b", True),
    (b"a\r\nb\r\n", "b", True),
    (b"\xe3\x80\x80a\xc2\xa0", "a", True),
    (b"a b", "a b", True),
    (b"! a\nb", "a", False),
    (b"*\n!a\n!a/b\na/b/c", "a/b/c", True),
    (b"*\n!a\n!a/b\na/b/c", "a/b/d", False),
    (b"*\n!Kitfile", "Kitfile", True),
    (b"!Kitfile", "x/Kitfile", False),
    (b"", "kitfile/x", True),
    (b"", ".kitignore", True),
    (b"", "KITFILE", False),
    (b"!!a", "!a", False),
    (b"*\n!!a", "!a", False),
    (b"*b*", "ab/c", True),
    (b"[a-c]/x", "b/x/y", True),
    (b"x*[a-]", "xa", True),
]

# Patterns that moby refuses when it reads or first matches them. The first pattern is an exception: moby reads it as
# a digit, but kitfs refuses it.
MALFORMED = [
    rb"\d*",
    b"[",
    b"a[",
    b"[]a]",
    b"[-]",
    b"[-x]",
    b"[x-]",
    b"[a-b-c]",
    b"[^",
    b"[^bc",
    b"\\",
    b"a\\",
    b"[\xff]",
    b"!",
    b"! ",
    b"!/",
    b"x*[",
    b"x*[z-a]",
    b"[z-a]*",
    rb"x*\q",
    rb"\q",
    rb"data\raw\*.bin",
    b"*{2}",
    b"a{2}{3}*",
    b"a{1001}*",
    b"a{99999}*",
    b"a{3,2}*",
    b"a|{2}*",
    b"[[:foo:]]",
    b"x" * 65536,
]

# patterns that would keep a backtracking matcher busy for ever
HOSTILE = [
    (b"**/" * 9000 + b"x*", False),
    (b"*a" * 20000 + b"c", False),
    (b"**/*" * 9000 + b"c", False),
    (b"a{0,1000}" * 60 + b"*c", False),
    (b"a|" * 20000 + b"*c", True),
    (b"?*" * 9000 + b"[bc]d", False),
]

SEGMENTS = st.text(alphabet="ab", min_size=1, max_size=3)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)
SIMPLE = st.lists(st.sampled_from(("a", "b", "*", "?", "ab", "**")), min_size=1, max_size=4).map("/".join)
LINES = st.lists(st.one_of(SIMPLE, SIMPLE.map("!{}".format), st.text(max_size=6)), max_size=5).map("\n".join)


def answer(data: bytes, path: str) -> bool | str:
    """Return whether the rules in `data` ignore the path, or the error message."""
    try:
        return IgnoreRules.parse(data).ignores(path)
    except KitfileError as e:
        return str(e)


def rules(text: str) -> IgnoreRules:
    """Return the rules in a string, or empty rules if the string is malformed."""
    try:
        return IgnoreRules.parse(text.encode("utf-8", "surrogatepass"))
    except KitfileError:
        return IgnoreRules.parse(None)


@pytest.mark.parametrize(("pattern", "path", "matches"), MOBY)
def test_moby(pattern: str, path: str, matches: bool) -> None:
    assert IgnoreRules.parse(pattern.encode()).ignores(path) is matches


@pytest.mark.parametrize(("data", "path", "ignored"), RECORDED)
def test_recorded(data: bytes, path: str, ignored: bool) -> None:
    """The expected results for unusual lines were recorded from moby.

    The lines contain regular expressions, comments, BOMs, spaces and invalid UTF-8.
    """
    assert IgnoreRules.parse(data).ignores(path) is ignored


@pytest.mark.parametrize(
    ("data", "path", "ignored"),
    [
        (b"**\n!util/docker/web", "util/docker/web/foo", False),
        (b"**\n!util/docker/web\nutil/docker/web/foo", "util/docker/web/foo", True),
        (b"**\n!dist/*.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", False),
        (b"!fileutils.go\n*.go", "fileutils.go", True),
        (b"*.go\n!fileutils.go", "fileutils.go", False),
        (b"docs\n!docs/README.md", "docs/README.md", False),
        (b"docs/\n!docs/README.md", "docs/README.md", False),
        (b"docs/*\n!docs/README.md", "docs/README.md", False),
    ],
)
def test_the_last_that_matches_decides(data: bytes, path: str, ignored: bool) -> None:
    """If several patterns match, the last one decides. The cases are the rows of moby's tables that have exceptions."""
    assert IgnoreRules.parse(data).ignores(path) is ignored


@pytest.mark.parametrize("pattern", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_pattern_is_told_with_its_line(pattern: bytes) -> None:
    """The error for a malformed pattern is one line, and contains the line number of the pattern."""
    with pytest.raises(KitfileError, match=r"^line 3 of \.kitignore\b[^\n]*$"):
        IgnoreRules.parse(b"# first\n\n" + pattern + b"\n*.bin\n")


@pytest.mark.parametrize(("pattern", "ignored"), HOSTILE, ids=range(len(HOSTILE)))
def test_no_pattern_takes_for_ever(pattern: bytes, ignored: bool) -> None:
    """Patterns with thousands of wildcards, repetitions and alternatives are matched against the longest paths."""
    ignore = IgnoreRules.parse(pattern)
    for path in ("a" * 4095, "a/" * 2047 + "a", "ab" * 2000):
        assert ignore.ignores(path) is ignored


def test_exceptions_are_known() -> None:
    """``has_exceptions`` is true if a line begins with "!". Then files below ignored directories may be included."""
    assert [IgnoreRules.parse(d).has_exceptions for d in (None, b"", b"*.bin", b"#!a", b"a\n !b", b"\\!a")] == [
        False
    ] * 4 + [True, False]


def test_lines_of_any_size_but_go_has_a_limit() -> None:
    """A line may have at most 65535 bytes, as in Go's bufio.Scanner. A longer line is refused."""
    assert IgnoreRules.parse(b"x" * 65535).ignores("x" * 65535)
    with pytest.raises(KitfileError, match=r"^line 1 of \.kitignore is longer than 65535 bytes$"):
        IgnoreRules.parse(b"x" * 65536 + b"\n")


def test_a_machine_forgets_and_goes_on() -> None:
    """A matcher has a limited number of cached states.

    Its results are right even after cached states were discarded.
    """
    ignore = IgnoreRules.parse(b"*[!-\xf4\x8f\xbf\xbf]x?")
    for n in range(0x100, 0x9000):
        assert ignore.ignores(f"a{chr(n)}xb")
        assert not ignore.ignores(f"a{chr(n)}yb")


@given(SIMPLE, PATHS)
def test_simple_patterns_are_what_they_say(pattern: str, path: str) -> None:
    """Stars, question marks and double stars match like the equivalent regular expression.

    A path also matches if a directory above the path matches.
    """
    parts = re.sub(r"(\*\*/)+\*\*$|(\*\*/)+", lambda m: "**" if m[0][-1] == "*" else "**/", pattern)
    wanted = (
        re.escape(parts)
        .replace(r"\*\*/", "(.*/)?")
        .replace(r"\*\*", ".*")
        .replace(r"\*", "[^/]*")
        .replace(r"\?", "[^/]")
    )
    above = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 2)]
    assert IgnoreRules.parse(pattern.encode()).ignores(path) == any(re.fullmatch(wanted, p) for p in above)


@given(LINES, PATHS, PATHS)
def test_what_is_below_an_ignored_directory_is_ignored(text: str, directory: str, below: str) -> None:
    """If no line is an exception, all paths below an ignored directory are ignored.

    So the directory need not be scanned.
    """
    ignore = rules(text)
    if not ignore.has_exceptions and ignore.ignores(directory):
        assert ignore.ignores(f"{directory}/{below}")


@given(LINES, PATHS)
def test_the_last_line_decides(text: str, path: str) -> None:
    """If the last line is a path, this path is ignored. If the last line is "!" and a path, this path is not ignored.

    The four names that kit always ignores cannot be excepted.
    """
    base = f"{text}\n{path}" if rules(text).ignores(path) else path
    assert rules(f"{base}\n").ignores(path)
    assert not rules(f"{base}\n!{path}").ignores(path)
    assert all(rules(f"{text}\n!{name}").ignores(name) for name in ("Kitfile", "kitfile", ".kitfile", ".kitignore"))


@given(st.binary(max_size=60), st.binary(min_size=1, max_size=20))
def test_any_bytes_are_rules_or_an_error_of_one_line(data: bytes, name: bytes) -> None:
    """A .kitignore of any bytes gives a result for any path, or raises a KitfileError of one line."""
    said = answer(data, name.decode("utf-8", "surrogateescape"))
    assert isinstance(said, bool) or (said.startswith("line ") and "\n" not in said)


@given(st.text(alphabet="ab[]^-\\*?{}2,|:./", max_size=12), PATHS)
def test_operators_anywhere_are_rules_or_an_error(pattern: str, path: str) -> None:
    """Brackets, braces, bars and backslashes in any order give a result or raise an error."""
    said = answer(pattern.encode(), path)
    assert isinstance(said, bool) or said.startswith("line 1 of .kitignore: invalid pattern ")


@given(
    st.lists(
        st.tuples(st.booleans(), SIMPLE | st.text("ab*?/[]{2}|^.", min_size=1, max_size=5)), min_size=1, max_size=6
    ),
    PATHS,
)
def test_the_last_line_that_matches_decides(lines: list[tuple[bool, str]], path: str) -> None:
    """If several patterns match a path, the last of these patterns decides."""
    said = [
        (exception, text, answer(("!" if exception else "").encode() + text.encode(), path))
        for exception, text in lines
    ]
    kept = [(exception, text) for exception, text, one in said if isinstance(one, bool)]
    matching = [exception for exception, text in kept if answer(text.encode(), path) is True]
    data = "\n".join(("!" if exception else "") + text for exception, text in kept).encode()
    assert answer(data, path) is (bool(matching) and not matching[-1])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dir{}/name", "*.tmp{}", "**/x{}", "**/*.t{}", "d{}/**", "logs{}/*.log"])
def test_a_hundred_thousand_lines(form: str) -> None:
    """A .kitignore of 100,000 lines gives the same results as a short one."""
    data = "\n".join(("!" if n % 2 else "") + form.format(n) for n in range(100_000)).encode()
    rules = IgnoreRules.parse(data)
    name = form.replace("**", "y").replace("*", "z")
    assert [rules.ignores(name.format(n)) for n in (2, 3, 99_998, 99_999, 100_000)] == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("path", "layer", "others", "out"),
    [
        ("main/sub/file", "main", ["main", "main/sub"], True),
        ("main/sub", "main", ["main/sub"], True),
        ("main/sub/file", "main/sub", ["main", "main/sub"], False),
        ("main", "main/sub", ["main"], False),
        ("main/other", "main", ["main/sub"], False),
        ("data-v2/file", "data-v2", ["data"], False),
        ("data-v2/file", ".", ["data"], False),
        ("data/file", ".", [".", "data"], True),
        ("data/file", ".", ["data/file"], True),
        ("file", ".", [".", "data"], False),
        ("data/file", "data", ["."], False),
        ("data/file", "data", [], False),
        ("shared/file", "other", ["shared"], True),
    ],
)
def test_a_layer_leaves_to_others_what_is_theirs(path: str, layer: str, others: list[str], out: bool) -> None:
    """A layer leaves out files below the path of another layer.

    The files are kept if the other path contains or equals the layer's own path. Paths are compared by their
    components.
    """
    assert left_out(path, layer, others) is out


@given(PATHS, PATHS, st.lists(PATHS, max_size=4))
def test_one_layer_at_least_keeps_a_path(path: str, layer: str, others: list[str]) -> None:
    """A file belongs to the layer with the longest path that contains the file."""
    around = [p for p in [*others, layer, "."] if is_within(path, p)]
    assert not left_out(path, max(around, key=lambda p: 0 if p == "." else p.count("/") + 1), [*others, layer, "."])
