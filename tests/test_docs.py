"""The paper's equations, the notes on it, the README and the script speak of the same things."""

import ast
import io
import re
import subprocess
import tokenize

import pytest
from script_helpers import ROOT, SCRIPT

import his_bidexhands
import his_mamujoco
import his_mpe

EQUATIONS = (5, 7, 8, 9, 10, 11, 12, 13, 27, 28, 29, 30, 31)
COMMANDS = (
    "pip install -r requirements.txt",
    "python his_mpe.py --scenario simple_spread --seed 1",
    "python his_mamujoco.py --scenario HalfCheetah-6x1 --seed 1",
    "python his_bidexhands.py --scenario ShadowHandDoorOpenOutward --seed 1",
    "pip install -r requirements-dev.txt && python -m pytest",
)
SOURCE = SCRIPT.read_text()
SCRIPTS = {"his_mamujoco": his_mamujoco, "his_mpe": his_mpe, "his_bidexhands": his_bidexhands}


def comments() -> str:
    """All comments of the script, one a line."""
    tokens = tokenize.generate_tokens(io.StringIO(SOURCE).readline)
    return "\n".join(token.string for token in tokens if token.type == tokenize.COMMENT)


def names_in_script() -> set[str]:
    """Functions, classes and methods (as Class.method) of the script."""
    names: set[str] = set()
    for node in ast.parse(SOURCE).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return names


def names_in_common() -> set[str]:
    """Functions and classes at the top of the files of common/."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "common").glob("*.py")]
    return {node.name for tree in trees for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def entries(text: str) -> dict[str, str]:
    """The numbered entries of the notes, from their headings: "READING 3" -> its text."""
    parts = re.split(r"^#+ +((?:READING|DEVIATION) \d+)\b", text, flags=re.MULTILINE)
    found = {name: re.split(r"^#+ ", body, flags=re.MULTILINE)[0] for name, body in zip(parts[1::2], parts[2::2])}
    assert len(found) == len(parts) // 2, "an entry stands twice"
    return found


def mentioned(text: str) -> set[str]:
    """The readings and deviations that a text points to."""
    return set(re.findall(r"(?:READING|DEVIATION) \d+", text))


def flags_of_scripts(*names: str) -> set[str]:
    """Every flag of these scripts, of all without a name, with the --no- form of the switches."""
    fields = [item for name in names or SCRIPTS for item in SCRIPTS[name].Args.__dataclass_fields__.items()]
    flags = {name.replace("_", "-"): field.type for name, field in fields}
    return {f"--{flag}" for flag in flags} | {f"--no-{flag}" for flag, kind in flags.items() if kind in (bool, "bool")}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_each_equation_is_tagged_where_it_is_computed(equation: int) -> None:
    assert f"Eq. ({equation})" in comments()


def test_each_pointer_of_the_script_has_its_entry_in_the_notes() -> None:
    notes = entries((ROOT / "docs/paper_notes.md").read_text())
    pointers = {pointer for name in SCRIPTS for pointer in mentioned((ROOT / f"{name}.py").read_text())}
    assert len(pointers) > 10
    assert pointers - notes.keys() == set()


def test_each_reading_that_names_a_flag_is_pointed_to_by_the_script() -> None:
    notes = entries((ROOT / "docs/paper_notes.md").read_text())
    flags = flags_of_scripts()
    with_flag = {name for name, text in notes.items() if name.startswith("READING") and re.search(r"`--[a-z]", text)}
    assert len(with_flag) > 5
    assert with_flag - mentioned(SOURCE) == set()
    named = {flag for text in notes.values() for flag in re.findall(r"`(--[a-z][a-z0-9-]*)", text)}
    assert named - flags == set()


def test_each_pointer_in_the_notes_has_its_entry() -> None:
    text = (ROOT / "docs/paper_notes.md").read_text()
    assert mentioned(text) - entries(text).keys() == set()


def equation_rows(text: str, heading: str) -> list[str]:
    """The rows of the table that starts with `| Equation` (or `heading`)."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows


def test_the_readme_leads_from_each_equation_to_a_function_that_exists() -> None:
    rows = equation_rows((ROOT / "README.md").read_text(), "| Equation")
    assert len(rows) >= 5
    known = names_in_script() | names_in_common()
    led_to_script = 0
    for row in rows:
        names = [name.removesuffix("()") for name in re.findall(r"`([A-Za-z_][\w.]*(?:\(\))?)`", row)]
        flags = re.findall(r"`(--[a-z][a-z0-9-]*)", row)
        assert names or flags, f"no function and no flag in {row}"
        assert [name for name in names if name not in known] == [], row
        assert set(flags) <= flags_of_scripts(), row
        led_to_script += any(name in names_in_script() for name in names)
    assert led_to_script >= 5
    spans = [
        match for row in rows for match in re.findall(r"\((\d+)\)(?:\s*(?:-|–|to)\s*\((\d+)\))?", row.split("|")[1])
    ]
    tagged = {n for first, last in spans for n in range(int(first), int(last or first) + 1)}
    assert set(EQUATIONS) - tagged == set()


def test_the_readme_has_both_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [command for command in COMMANDS if not any(line.strip().startswith(command) for line in lines)] == []


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_every_flag_in_the_documents_exists(name: str) -> None:
    for script, rest in re.findall(r"python (his_\w+)\.py([^\n`]*)", (ROOT / name).read_text()):
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", rest))
        assert used - flags_of_scripts(script) - {"--help"} == set(), rest


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    assert "his_mamujoco.py" in names
    private = [b"/" + folder + b"/" for folder in (b"work", b"root")]
    found = []
    for name in names:
        path = ROOT / name
        if path.is_file() and any(place in path.read_bytes() for place in private):
            found.append(name)
    assert found == []
