"""list, inspect, info, tag and remove print the same as kit, for kits in the store and in registries."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from tests import kits
from tests.fakes.faults import Status
from tests.fakes.registry import FakeRegistry
from tests.unit.cli.conftest import Kitfs

KITFILE = """\
manifestVersion: 1.0.0
package: {name: tiny, version: "1.0", description: "a\\nb\\n", authors: [Ada, Bob <b>]}
model:
  name: m
  path: w.bin
  parameters: {lr: 1.0e-7, nested: {a: true, b: [1, null]}}
code: [{path: c.py}]
"""
DIGEST = "sha256:" + "0a" * 32


@pytest.fixture
def packed(kitfs: Kitfs, tmp_path: Path) -> str:
    """Pack a kit as r.io/team/tiny:v1 and :v2, and return its digest."""
    tree = tmp_path / "tiny"
    tree.mkdir()
    (tree / "Kitfile").write_text(KITFILE)
    (tree / "w.bin").write_bytes(bytes(5000))
    (tree / "c.py").write_bytes(b"pass\n")
    for file in tree.iterdir():
        file.chmod(0o644)
    return kitfs("pack", tree, "-t", "r.io/team/tiny:v1,v2").out.split()[-1]


@pytest.fixture
def empty(kitfs: Kitfs, tmp_path: Path) -> str:
    """Pack a kit without layers, name or tag, and return its digest."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/Kitfile").write_text("manifestVersion: 1.0.0\n")
    return kitfs("pack", tmp_path / "empty").out.split()[-1]


def test_a_layout_is_looked_at_too(kitfs: Kitfs, packed: str) -> None:
    """info and inspect accept an OCI layout. They do not copy its kit to the store."""
    kitfs("export", "r.io/team/tiny:v1", "oci:layout:v1")
    for verb in ("info", "inspect"):
        of_layout = kitfs(verb, "oci:layout:v1", "--cache-dir", "other")
        assert of_layout == kitfs(verb, "r.io/team/tiny:v1")
        assert of_layout.code == 0
        assert kitfs(verb, "oci:layout:v2").code == 3
        assert (
            kitfs(verb, "-r", "oci:layout:v1").err == "kitfs: can not check remote: oci:layout:v1 is a layout on disk\n"
        )


@pytest.mark.parametrize(
    "verb", [("tag", "r.io/team/tiny:v1"), ("remove",), ("pull",), ("push",), ("pack", "tiny", "-t")]
)
def test_a_layout_is_no_name_of_a_kit(kitfs: Kitfs, packed: str, verb: tuple[str, ...]) -> None:
    """The tag verb refuses a name such as oci:v1, because mount and other verbs would read the name as a layout."""
    done = kitfs(*verb, "oci:v1")
    assert (done.code, done.out) == (2, "")
    assert done.err == "kitfs: 'oci:v1' is an OCI layout; expected the name of a kit (registry/repository:tag)\n"


def test_the_table(kitfs: Kitfs, packed: str, empty: str) -> None:
    """The table has one row for each tag. A missing value is shown as <none>."""
    assert kitfs("list").out == dedent(f"""\
        REPOSITORY       TAG      MAINTAINER   NAME     SIZE      DIGEST
        <none>           <none>   <none>       <none>   0 B       {empty}
        r.io/team/tiny   v1       Ada          tiny     8.5 KiB   {packed}
        r.io/team/tiny   v2       Ada          tiny     8.5 KiB   {packed}
    """)


def test_an_empty_store(kitfs: Kitfs) -> None:
    assert kitfs("list").out == "REPOSITORY   TAG   MAINTAINER   NAME   SIZE   DIGEST\n"
    assert kitfs("list", "--format", "json").out == "[]\n"
    assert kitfs("list", "--format", "{{.Repo}}").out == ""


def test_json_as_kit_1_17_has_it(kitfs: Kitfs, packed: str, empty: str) -> None:
    """Sizes are numbers of bytes, strings are escaped as in Go, and a kit without tags has null instead of a list."""
    done = kitfs("list", "--format", "json")
    assert done.out == kitfs("list", "--json").out
    assert done.out == dedent(f"""\
        [
          {{
            "repo": "\\u003cnone\\u003e",
            "digest": "{empty}",
            "tags": null,
            "modelName": "\\u003cnone\\u003e",
            "size": 0,
            "author": "\\u003cnone\\u003e"
          }},
          {{
            "repo": "r.io/team/tiny",
            "digest": "{packed}",
            "tags": [
              "v1",
              "v2"
            ],
            "modelName": "tiny",
            "size": 8704,
            "author": "Ada"
          }}
        ]
    """)


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        ("{{.Repo}} {{ .Tags }} {{.Size}}", "<none> [] 0 B\nr.io/team/tiny [v1 v2] 8.5 KiB\n"),
        ("{{.ModelName}}{{`: `}}{{- .Author}}\n", "<none>: <none>\ntiny: Ada\n"),
        ('{{.Author}}{{"\\t|"}}', "<none>\t|\nAda\t|\n"),
    ],
)
def test_templates(kitfs: Kitfs, packed: str, empty: str, template: str, printed: str) -> None:
    """The template is executed once for each kit. A newline is added if the template has none at its end."""
    assert kitfs("list", "--format", template).out == printed


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{{range .Tags}}{{.}}{{end}}", "'range'"),
        ("{{.Nope}}", "unknown field .Nope"),
        ("{{.Repo | len}}", "pipeline '.Repo | len'"),
        ("{{", "unclosed"),
    ],
)
def test_what_templates_do_not_take_is_refused_by_name(kitfs: Kitfs, template: str, named: str) -> None:
    done = kitfs("list", "--format", template)
    assert (done.code, done.out) == (2, "")
    assert named in done.err


def test_filters_of_lists(kitfs: Kitfs, packed: str, empty: str) -> None:
    """A kit is listed if any of the filters selects a part of the kit. Newer versions of kit do the same."""
    told = {
        f: kitfs("list", "-f", f, "--format", "{{.ModelName}}").out
        for f in ("model", "datasets", "code:c.py", "code:x", "kitfile")
    }
    assert told == {"model": "tiny\n", "datasets": "", "code:c.py": "tiny\n", "code:x": "", "kitfile": "<none>\ntiny\n"}
    assert kitfs("list", "-f", "datasets", "--filter", "model", "--format", "{{.ModelName}}").out == "tiny\n"
    assert kitfs("list", "-f", "bogus").code == 2


def test_a_repository_at_its_registry(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """The tags of all pages of the registry's list are shown, without the registry's name. Only kits are listed.

    If the reference has a tag, only the kit with this tag is listed.
    """
    kit = kits.build([kits.part("code", "c.py", kits.kit_tar({"c.py": b"1"}))], name="remote")
    for tag in ("v1", "v2", "v3"):
        fake.put_kit("team/kit", kit, tag)
    fake.put_kit("team/kit", kits.container_image(), "image")
    fake.tags_per_page = 2
    done = kitfs("list", f"{fake.host}/team/kit", "--plain-http")
    assert [line.split()[:4] for line in done.out.splitlines()[1:]] == [
        ["team/kit", tag, "<none>", "remote"] for tag in ("v1", "v2", "v3")
    ]
    assert kitfs("list", f"{fake.host}/team/kit:v2", "--format", "{{.Tags}}").out == "[v2]\n"
    assert kitfs("list", f"{fake.host}/team/none").code == 3
    assert kitfs("list", f"{fake.host}/team/kit:image").code == 8
    assert kitfs("list", "kit").code == 2


def test_a_damaged_kit_is_listed_and_told(kitfs: Kitfs, packed: str, tmp_path: Path) -> None:
    """A damaged kit can be listed and removed. A warning says that it is damaged."""
    config = kitfs("inspect", "r.io/team/tiny:v1").json["manifest"]["config"]["digest"].removeprefix("sha256:")
    for file in (tmp_path / "store/blobs/sha256" / config[:2] / config).iterdir():
        file.unlink()
    done = kitfs("list", "--format", "{{.Repo}} {{.ModelName}} {{.Digest}}")
    assert done.out == f"r.io/team/tiny <none> {packed}\n"
    assert "the store has lost its blob" in done.err
    assert kitfs("inspect", "r.io/team/tiny:v1").code == 7
    assert kitfs("remove", "r.io/team/tiny:v1,v2").code == 0
    assert kitfs("list", "--json").json == []


def test_inspect(kitfs: Kitfs, packed: str) -> None:
    """The JSON contains digest, cliVersion, kitfile (with digests) and manifest. Order and escapes are those of Go."""
    done = kitfs("inspect", "r.io/team/tiny:v1")
    told = done.json
    assert (list(told), told["digest"], told["cliVersion"]) == (
        ["digest", "cliVersion", "kitfile", "manifest"],
        packed,
        "1.7.0",
    )
    assert list(told["manifest"]) == ["schemaVersion", "config", "layers", "annotations"]
    assert told["kitfile"]["model"]["digest"] == told["manifest"]["layers"][0]["digest"]
    assert '\n        "Bob \\u003cb\\u003e"\n' in done.out
    assert '\n        "lr": 1e-7,\n' in done.out
    assert kitfs("inspect", f"r.io/team/tiny@{packed}").out == done.out


def test_inspect_of_what_has_no_version_and_no_layers(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """cliVersion is "unknown", and layers is null."""
    reference = fake.put_kit("a/b", kits.build([], vintage="1.7", manifest_extra={"annotations": {}}), "v1")
    told = kitfs("inspect", "-r", reference).json
    assert (told["cliVersion"], told["manifest"]["layers"]) == ("unknown", None)


INFO = """\
manifestVersion: 1.0.0
package:
  name: tiny
  version: "1.0"
  description: |
    a
    b
  authors: [Ada, Bob <b>]
model:
  name: m
  path: w.bin
  parameters:
    lr: 1e-07
    nested:
      a: true
      b:
        - 1
        - null
code:
  - path: c.py
"""


def test_info(kitfs: Kitfs, packed: str) -> None:
    """info prints the Kitfile without digests."""
    assert kitfs("info", "r.io/team/tiny:v1").out == INFO
    assert kitfs("info", f"r.io/team/tiny@{packed}").out == INFO
    assert kitfs("info", "r.io/team/tiny:v1", "--json").json["package"]["version"] == "1.0"


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        ("model.path", "w.bin\n"),
        (".package.name", "tiny\n"),
        ("Package.Version", '"1.0"\n'),
        ("package.license", '""\n'),
        ("package.authors", "- Ada\n- Bob <b>\n"),
        ("package.description", "|\n  a\n  b\n"),
        ("code", "- path: c.py\n"),
        ("code.0.path", "c.py\n"),
        ("dataSets", "[]\n"),
        ("datasets", "[]\n"),
        ("model.parts", "[]\n"),
        ("model.parameters", "lr: 1e-07\nnested:\n  a: true\n  b:\n    - 1\n    - null\n"),
        ("model.parameters.lr", "1e-07\n"),
        ("model.parameters.nested.b", "- 1\n- null\n"),
        ("model.parameters.nested.a", "true\n"),
    ],
)
def test_info_of_a_part(kitfs: Kitfs, packed: str, path: str, printed: str) -> None:
    """A selected list or object is printed as yaml.v3 prints it. A scalar is printed as plain text."""
    assert kitfs("info", "r.io/team/tiny:v1", "--filter", path).out == printed


@pytest.mark.parametrize(
    ("path", "code", "told"),
    [
        ("nothing.here", 3, "cannot find required node"),
        ("code.path", 3, "cannot find required node"),
        ("code.9", 3, "cannot find required node"),
        ("model.name.x", 3, "cannot find required node"),
        ("code[0]", 2, "invalid filter: array access using '[]' is not currently supported"),
        ("a b", 2, "invalid filter: a b"),
    ],
)
def test_info_of_no_part(kitfs: Kitfs, packed: str, path: str, code: int, told: str) -> None:
    done = kitfs("info", "r.io/team/tiny:v1", "-f", path)
    assert (done.code, done.out) == (code, "")
    assert told in done.err


def test_what_is_not_there(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """Without -r, info and inspect search only the store. With -r, the reference must name a registry."""
    for verb in ("info", "inspect"):
        assert kitfs(verb, "r.io/a/b:v1").err.startswith("kitfs: Could not find modelkit r.io/a/b:v1")
        assert kitfs(verb, "-r", f"{fake.host}/a/b:v1").code == 3
        assert kitfs(verb, "-r", "kit:v1").code == 2
        assert kitfs(verb, "r.io/a/b:v1,v2").code == 2


def test_a_child_is_looked_at_without_its_parent(kitfs: Kitfs, fake: FakeRegistry) -> None:
    reference = fake.put_kit("a/child", kits.build([], parent="nowhere.invalid/a/parent:v1"), "v1")
    assert kitfs("info", "-r", reference, "--filter", "model.path").out == "nowhere.invalid/a/parent:v1\n"


def test_tag(kitfs: Kitfs, packed: str) -> None:
    """A kit can get several tags, in its own repository and in others. The full references are printed."""
    assert (
        kitfs("tag", "r.io/team/tiny:v1", "r.io/team/tiny:v3").out
        == "Modelkit r.io/team/tiny:v1 tagged as r.io/team/tiny:v3\n"
    )
    done = kitfs("tag", "r.io/team/tiny:v1", "copy:a,b")
    assert (
        done.out == "Modelkit r.io/team/tiny:v1 tagged as localhost/copy:a\n"
        "Modelkit r.io/team/tiny:v1 tagged as localhost/copy:b\n"
    )
    assert kitfs("list", "--format", "{{.Repo}} {{.Tags}}").out == "copy [a b]\nr.io/team/tiny [v1 v2 v3]\n"
    assert kitfs("tag", f"r.io/team/tiny@{packed}", "x:y", "--json").json == {"digest": packed, "references": ["x:y"]}


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("r.io/a/b:v1", "x:y", 3),
        ("r.io/team/tiny", "x:y", 2),
        ("r.io/team/tiny:v1", "x", 2),
        ("r.io/team/tiny:v1", f"x@{DIGEST}", 2),
    ],
)
def test_tags_that_cannot_be(kitfs: Kitfs, packed: str, source: str, target: str, code: int) -> None:
    """The target must have a tag. The source must have a tag or a digest."""
    done = kitfs("tag", source, target)
    assert (done.code, done.out) == (code, "")


def blobs(tmp_path: Path) -> int:
    return len(list((tmp_path / "store/blobs").glob("*/*/*")))


def test_ls_lh_shows_sizes_for_people(kitfs: Kitfs, packed: str) -> None:
    """``ls -lh`` prints sizes as GNU ls does. A single -h prints the help."""
    exact, human = kitfs("ls", "-l", "r.io/team/tiny:v1").out, kitfs("ls", "-lh", "r.io/team/tiny:v1").out
    assert len(exact.splitlines()) == len(human.splitlines()) > 1
    assert re.search(r" \d+ B \d{4}-", human)
    assert not re.search(r" \d+ B \d{4}-", exact)
    assert kitfs("ls", "-h").out.startswith("Usage: kitfs ls")


def test_remove_untags_until_the_last(kitfs: Kitfs, packed: str, tmp_path: Path) -> None:
    """When its last tag is removed, the kit is removed, with all blobs that no other kit contains."""
    there = blobs(tmp_path)
    assert kitfs("remove", "r.io/team/tiny:v1").out == f"Removed r.io/team/tiny:v1 (digest {packed})\n"
    assert (kitfs("list", "--format", "{{.Tags}}").out, blobs(tmp_path)) == ("[v2]\n", there)
    assert kitfs("remove", "r.io/team/tiny:v2").out == f"Removed r.io/team/tiny:v2 (digest {packed})\n"
    assert (kitfs("list", "--json").json, blobs(tmp_path)) == ([], 0)
    done = kitfs("remove", "r.io/team/tiny:v2")
    assert (done.code, done.out) == (3, "")
    assert done.err == "kitfs: Failed to remove: model r.io/team/tiny:v2 not found\n"


@pytest.mark.parametrize("how", ["force", "digest"])
def test_remove_takes_all_tags(kitfs: Kitfs, packed: str, how: str) -> None:
    """With -f or a digest, remove removes all tags of the kit in the named repository.

    Other repositories keep their tags.
    """
    kitfs("tag", "r.io/team/tiny:v1", "other:x")
    target = ("r.io/team/tiny:v1", "-f") if how == "force" else (f"r.io/team/tiny@{packed}",)
    assert kitfs("remove", *target).out == f"Removed {target[0]} (digest {packed})\n"
    assert kitfs("list", "--format", "{{.Repo}}").out == "other\n"
    assert kitfs("info", "other:x").out == INFO


def test_remove_several(kitfs: Kitfs, packed: str) -> None:
    """Tags are separated by commas. An error is printed for a tag that does not exist. The other tags are removed."""
    done = kitfs("remove", "r.io/team/tiny:v1,nope,v2")
    assert done.out == "".join(f"Removed r.io/team/tiny:{tag} (digest {packed})\n" for tag in ("v1", "v2"))
    assert (done.code, done.err) == (3, "kitfs: Failed to remove tag nope: model r.io/team/tiny:nope not found\n")


def test_remove_all(kitfs: Kitfs, packed: str, empty: str, tmp_path: Path) -> None:
    """-a removes kits without tags, and -a -f removes all kits."""
    assert kitfs("remove", "-a").out == f"Removed @{empty}\n"
    assert kitfs("remove", "--all").out == ""
    told = f"Untagged r.io/team/tiny:v1\nUntagged r.io/team/tiny:v2\nRemoved r.io/team/tiny@{packed}\n"
    assert (kitfs("remove", "-a", "-f").out, blobs(tmp_path)) == (told, 0)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "modelkit is required for remove unless --all is specified"),
        (("r.io/a/b:v1", "-a"), "modelkit should not be specified when --all flag is used"),
        (("-a", "-r"), "cannot use --all with --remote"),
        (("r.io/a/b",), "missing tag or digest"),
        (("-r", "kit:v1"), "does not name a registry"),
    ],
)
def test_remove_of_nothing(kitfs: Kitfs, args: tuple[str, ...], told: str) -> None:
    done = kitfs("remove", *args)
    assert (done.code, done.out) == (2, "")
    assert told in done.err


def test_remove_keeps_what_another_kit_has(kitfs: Kitfs, packed: str, tmp_path: Path) -> None:
    (tmp_path / "tiny/Kitfile").write_text(KITFILE.replace("name: tiny", "name: twin"))
    kitfs("pack", tmp_path / "tiny", "-t", "twin:v1")
    kitfs("remove", f"r.io/team/tiny@{packed}")
    assert blobs(tmp_path) == 4
    assert kitfs("cat", "twin:v1", "c.py").out == "pass\n"


def test_remove_at_the_registry(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """Without --force, only the tag is deleted. The kit remains. Like kit, remove prints nothing on stdout."""
    kit = kits.build([])
    for tag in ("v1", "v2", "v3"):
        fake.put_kit("a/b", kit, tag)
    done = kitfs("remove", "--remote", f"{fake.host}/a/b:v1", "--plain-http")
    assert (done.code, done.out, done.err) == (0, "", f"kitfs: untagged {fake.host}/a/b:v1 (digest {kit.digest})\n")
    assert fake.tags("a/b") == {"v2": kit.digest, "v3": kit.digest}
    assert kitfs("remove", "-r", f"{fake.host}/a/b:v1").code == 3
    assert kitfs("remove", "-r", "-f", f"{fake.host}/a/b:v2").code == 0
    assert fake.tags("a/b") == {}


def test_a_registry_that_deletes_no_tags(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """If the registry cannot delete tags, a kit with one tag is deleted. A kit with several tags is not deleted."""
    kit = kits.build([])
    fake.put_kit("a/b", kit, "v1")
    fake.put_kit("a/b", kit, "v2")
    fake.put_kit("a/b", kits.build([], name="other"), "v3")
    fake.fail("/manifests/v", Status(405), method="DELETE")
    done = kitfs("remove", "-r", f"{fake.host}/a/b:v1")
    assert done.code == 4
    assert "remote registry does not support untagging; --force deletes the kit, and with it the tags v2" in done.err
    fake.put_kit("a/b", kit, "v1")  # the fake deleted the tag although its response was 405
    assert kitfs("remove", "-r", f"{fake.host}/a/b:v3").code == 0
    assert set(fake.tags("a/b")) == {"v1", "v2"}
    assert kitfs("remove", "-r", f"{fake.host}/a/b@{kit.digest}").code == 0
    assert fake.tags("a/b") == {}


def test_a_registry_that_deletes_nothing_now(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """A conflict, such as an immutable tag, is reported as it is, and the kit is not deleted in place of the tag."""
    fake.put_kit("a/b", kits.build([]), "v1")
    fake.fail("/manifests/v1", Status(409), method="DELETE", times=1)
    done = kitfs("remove", "-r", f"{fake.host}/a/b:v1")
    assert done.code == 4
    assert f"{fake.host} returned 409" in done.err


def test_a_registry_that_deletes_nothing(kitfs: Kitfs, fake: FakeRegistry) -> None:
    fake.put_kit("a/b", kits.build([]), "v1")
    fake.fail("/manifests/", Status(405), method="DELETE")
    done = kitfs("remove", "-r", f"{fake.host}/a/b:v1")
    assert done.code == 4
    assert f"removing models is unsupported by registry {fake.host}" in done.err
