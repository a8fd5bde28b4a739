"""Names out of a checkpoint are an attacker's text: no format lets them act, and no terminal obeys them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt
from rich.console import Console
from rich.errors import MarkupError
from safetensors.torch import load_file, save_file

from nndiag.report import FORMATS
from tests.checkpoint.files import save
from tests.security.conftest import Program

NAMES = {
    "markup": "[bold red]x[/bold red][link=http://evil.example]y[/link][/]",
    "escapes": "\x1b[2J\x1b]0;title\x07\x1b[31mred\x1b]8;;http://evil.example\x07",
    "c1 controls": "\x9b31m\x9d0;title\x9c",
    "lines": "a\nerror: b: c; d\r\n# heading",
    "carriage return": "healthy\rdead\x08\x7f",
    "directions": "a\u202egnp.\u2066b\u2069\u200f",
    "separators": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "invisible": "a\u200bb\ufeffc\u00ad\u2060",
    "workflow": "::error file=a.py,line=1::x",
    "short workflow": "::error::x",
    "workflow lines": "a\n::stop-commands::x\n::add-mask::y",
    "older workflow": "a ##[error]x ##vso[task.setvariable variable=a]b ##teamcity[x]",
    "encoded workflow": "a%0A::error::x%0D%25",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)></details></code><!--",
    "entities": "&lt;b&gt;&#60;i&#62;&amp;",
    "markdown": "[a](http://evil.example) ![i](http://evil.example/i.png) `c` | t | **b** <http://evil.example>",
    "links": "http://evil.example www.evil.example @everyone #1 mail@evil.example",
    "emoji": ":smiley: :warning:",
    "format": "{0} {layer!r} %s %(x)s ${HOME} $(id) `id`",
    "long": "x" * 900,
    "wide": "漢字" * 100 + "e\u0301\u0301\u0301",
    "nul": "a\x00b",
    "xml": "]]><x/>\ufffe\ud7ff",
}
HARMLESS = "harmless"
HARMFUL = re.compile(r"://|%0A|[$`{]|[^\x20-\x7e]")
OWN_HTML = re.compile(r"</?(code|details|summary)>|<!-- -->|<br>")


def scanned(scan: Program, run: Path, name: str, form: str) -> str:
    """Scan a layer of this name with dead and twin nodes; return the report, checked to be the same in a file."""
    save({f"{name}.weight": torch.tensor([[0.0, 0.0], [1, 1], [1, 1], [1e9, 2]]), "b.weight": torch.ones(2, 4)},
         run / "x.pt")  # fmt: skip
    ended = scan("x.pt", "--format", form, "--output", f"{form}=report", "--all-nodes")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    if form != "rich":
        assert without_time((run / "report").read_text()) == without_time(ended.out)
    return ended.out


def without_time(text: str) -> str:
    return re.sub(r'"timing": \{[^}]*\}|\d+(\.\d+)? m?s\b|\btime="[^"]*"', "", text)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", NAMES)
def test_names_do_not_steer(scan: Program, run: Path, kind: str, form: str) -> None:
    out = scanned(scan, run, NAMES[kind], form)
    assert out.replace("\n", "").isprintable()
    twin = scanned(scan, run, HARMLESS, form)
    assert commands(out) == commands(twin)


def commands(text: str) -> int:
    """How many lines a build would obey as commands: ``::`` where a line begins, ``##[`` anywhere."""
    lines = text.split("\n")
    return sum(line.lstrip().startswith("::") or bool(re.search(r"##\w*\[", line)) for line in lines)


def test_commands_are_recognised() -> None:
    assert commands("a\n  ::error::x\na ##vso[y]z\n#[a]") == 2


@pytest.mark.parametrize("kind", sorted(set(NAMES) - {"long"}))
def test_stock_loaders_hand_names_over_as_they_are(tmp_path: Path, kind: str) -> None:
    """Whoever prints them, on a terminal or in a build, obeys them."""
    weights = {NAMES[kind]: torch.zeros(2)}
    torch.save(weights, tmp_path / "x.pt")
    save_file(weights, tmp_path / "x.safetensors")
    (name,) = torch.load(tmp_path / "x.pt", weights_only=True)
    assert [name] == list(load_file(tmp_path / "x.safetensors")) == [NAMES[kind]]
    rendered = MarkdownIt("commonmark").render(name) != f"<p>{name}</p>\n"
    assert obeyed_by_rich(name) or rendered or commands(name) or HARMFUL.search(name)


def obeyed_by_rich(name: str) -> bool:
    page = io.StringIO()
    try:
        Console(file=page, width=500).print(name)
    except MarkupError:
        return True
    return page.getvalue().strip() != name


@pytest.mark.parametrize("kind", NAMES)
def test_names_in_json_come_back_as_they_are(scan: Program, run: Path, kind: str) -> None:
    found = json.loads(scanned(scan, run, NAMES[kind], "json"))
    assert NAMES[kind] in [layer["name"] for layer in found["checkpoints"][0]["layers"]]
    lines = scanned(scan, run, NAMES[kind], "jsonl").split("\n")
    assert len(lines) == 2  # one checkpoint, and the end


@pytest.mark.parametrize("kind", NAMES)
def test_names_in_markdown_are_text(scan: Program, run: Path, kind: str) -> None:
    parser = MarkdownIt("commonmark", {"linkify": False}).enable("table")
    source = scanned(scan, run, NAMES[kind], "markdown")
    out = parser.parse(source)
    twin = parser.parse(scanned(scan, run, HARMLESS, "markdown"))
    assert [token.type for token in out] == [
        token.type for token in twin
    ]  # the same headings, rows and lists
    for token in out:
        for part in [token, *(token.children or [])]:
            assert part.type not in ("link_open", "image")
            if part.type in ("html_inline", "html_block"):
                assert not OWN_HTML.sub("", part.content).strip().startswith("<"), part.content
    # what GitHub makes links of besides: addresses and mentions, told by the signs before any escaping
    assert not re.search(r"://|www\.|@\w", source)


@pytest.mark.parametrize("kind", NAMES)
def test_errors_and_notes_quote_names_on_one_line(scan: Program, run: Path, kind: str) -> None:
    name = NAMES[kind]
    save({f"{name}.weight": torch.ones(2, 4), f"{name}.bias": torch.ones(3)}, run / "x.pt")
    (run / "nndiag.toml").write_text('[model]\nsequential = [["Linear", 4, 3]]\n')
    line = scan("x.pt").failed(3)
    assert line.isprintable()
    assert commands(line) == 0
    assert len(line) < 2000
    ended = scan("x.pt", "--weights-key", name.replace("\x00", ""))
    assert ended.failed(ended.code).isprintable()
    assert ended.code in (2, 3)


@pytest.mark.parametrize(
    "kind", sorted(set(NAMES) - {"nul", "html", "entities", "markdown", "links", "long", "wide"})
)
@pytest.mark.parametrize("form", FORMATS)
def test_names_of_files(scan: Program, run: Path, kind: str, form: str) -> None:
    name = NAMES[kind].replace("/", "") + ".safetensors"
    save_file({"a.weight": torch.zeros(2, 2)}, run / name)
    ended = scan(".", "--format", form)
    assert ended.code == 0
    assert ended.out.replace("\n", "").isprintable()
    (run / name).rename(run / "harmless.safetensors")
    assert commands(ended.out) == commands(scan(".", "--format", form).out)


@pytest.mark.parametrize("form", FORMATS)
def test_names_that_are_no_unicode(scan: Program, run: Path, form: str) -> None:
    """A pickle may hold half of a surrogate pair, which no encoding can write."""
    path = save({"Q.weight": torch.zeros(2, 2)}, run / "good.pth_", "legacy")
    (run / "x.pt").write_bytes(
        path.read_bytes().replace(b"X\x08\x00\x00\x00Q.weight", b"X\x0a\x00\x00\x00\xed\xa0\x80.weight")
    )
    assert list(torch.load(run / "x.pt", weights_only=True)) == ["\ud800.weight"]
    ended = scan("x.pt", "--format", form, "--output", f"{form}=report")
    assert ended.code == 0, ended.err
    assert "ud800" in ended.out
    (run / "report").read_bytes().decode("utf-8")


def test_names_without_end_are_refused(run: Path, scan: Program) -> None:
    """Each finding names its layer: a long name many times over would make a report without end."""
    save({"x" * 100_000 + ".weight": torch.zeros(2, 2)}, run / "x.pt")
    assert len(scan("x.pt").failed(3)) < 1000


Refused = Callable[..., str]


@pytest.mark.parametrize("kind", NAMES)
def test_names_in_a_probe(run: Path, scan: Program, kind: str) -> None:
    save({"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3)}, run / "x.pth")
    torch.save({"x": torch.ones(2, 4), NAMES[kind]: torch.ones(1)}, run / "probe.pt")
    (run / "nndiag.toml").write_text('[model]\nsequential = [["Linear", 4, 3]]\n[probe]\ndata = "probe.pt"\n')
    ended = scan("x.pth", "--level", "activations")
    assert ended.code == 0
    assert ended.err.replace("\n", "").isprintable()
    assert all(line.startswith("note: ") for line in ended.err.splitlines())
    assert commands(ended.err) == 0
    torch.save({NAMES[kind]: torch.ones(1)}, run / "probe.pt")
    line = scan("x.pth").failed(3)
    assert line.isprintable()
    assert commands(line) == 0
