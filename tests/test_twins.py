"""The scripts are copies of one another: what differs is marked, few and meant; everything else is the same code."""

import ast
import re

import pytest
from script_helpers import ROOT

REFERENCE, COPIES = "his_mamujoco.py", ("his_mpe.py", "his_bidexhands.py")
MARK = re.compile(r"# .*DIFFERS: \S+")


def parts(name: str, source: str | None = None) -> dict[str, tuple[str, str]]:
    """Name -> (syntax tree without positions, source text with the comments above) of each statement of a script.

    Imports are one statement each, the fields of `Args` with their docstrings too; all other classes are whole.
    """
    text = (ROOT / name).read_text() if source is None else source
    lines, found = text.splitlines(), {}
    title, *body = ast.parse(text).body
    previous_end = title.end_lineno or 0
    for node in body:
        nodes: list[ast.stmt] = [node]
        if isinstance(node, ast.ClassDef) and node.name == "Args":
            found["Args()"] = (ast.dump(ast.Tuple(elts=[*node.bases, *node.decorator_list], ctx=ast.Load())), "")
            previous_end, nodes = node.lineno, node.body
        for i, child in enumerate(nodes):
            if isinstance(child, ast.Expr):
                continue  # a docstring, taken with the field above it
            after = nodes[i + 1] if i + 1 < len(nodes) and isinstance(nodes[i + 1], ast.Expr) else child
            key = key_of(child)
            assert key not in found, f"{name}: {key} stands twice"
            tree = ast.dump(child) + (ast.dump(after) if after is not child else "")
            end = after.end_lineno or after.lineno
            found[key] = (tree, "\n".join(lines[previous_end:end]))
            previous_end = end
    return found


def key_of(node: ast.stmt) -> str:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("common."):
        return "import the benchmark" if "VecEnv" in ast.dump(node) and "vecenv" not in node.module else node.module
    return ast.unparse(node).partition("=")[0].strip()


def unmarked_differences(one: dict[str, tuple[str, str]], other: dict[str, tuple[str, str]]) -> list[str]:
    """Statements that are not the same in both, or in one only, without a `# DIFFERS: why` wherever they stand."""
    return [
        key
        for key in [*one, *(key for key in other if key not in one)]
        if one.get(key, ("",))[0] != other.get(key, ("",))[0]
        and not all(MARK.search(script[key][1]) for script in (one, other) if key in script)
    ]


def statement_order(script: dict[str, tuple[str, str]]) -> list[str]:
    return [key for key, (_, text) in script.items() if not MARK.search(text)]


@pytest.mark.parametrize("copy", COPIES)
def test_what_differs_is_marked(copy: str) -> None:
    reference, other = parts(REFERENCE), parts(copy)
    assert len(reference) > 60
    assert unmarked_differences(reference, other) == []
    assert statement_order(reference) == statement_order(other)


@pytest.mark.parametrize("copy", COPIES)
def test_what_is_marked_differs_from_some_copy_and_is_little(copy: str) -> None:
    other = parts(copy)
    marked = [key for key, (_, text) in other.items() if MARK.search(text)]
    others = [parts(name) for name in (REFERENCE, *COPIES) if name != copy]
    same = [key for key in marked if all(key in o and o[key][0] == other[key][0] for o in others)]
    assert same == [], "marked, but the same everywhere"
    code = {key for key in marked if other[key][0].startswith(("FunctionDef", "ClassDef"))}
    assert code <= {"make_env", "task_and_variant"}, "only the environment may differ in code"


@pytest.mark.parametrize("copy", COPIES)
def test_the_comments_of_equal_code_are_the_same(copy: str) -> None:
    reference, other = parts(REFERENCE), parts(copy)
    unequal = [
        key
        for key, (_, text) in reference.items()
        if key in other and not MARK.search(text) and not MARK.search(other[key][1]) and text != other[key][1]
    ]
    assert unequal == []


def test_an_unmarked_change_is_found() -> None:
    """Changes of one character in a function, a default, a field's documentation, an import; a function too many."""
    text = (ROOT / REFERENCE).read_text()
    reference = parts(REFERENCE)
    for old, new, key in (
        ("(1 - terminated) V(s')", "(1 - terminated) V(s)", "critic_target"),
        ("tau: float = 0.005", "tau: float = 0.05", "tau: float"),
        ("Polyak coefficient of", "Polyak factor of", "tau: float"),
        ("from common.streams import Streams", "from common.streams import Streams as S", "common.streams"),
        ("ACTION_BOUND = 1 - 1e-6", "ACTION_BOUND = 1 - 1e-6\n\n\ndef extra():\n    pass", "extra"),
    ):
        assert text.count(old) >= 1, old
        assert unmarked_differences(reference, parts(REFERENCE, text.replace(old, new, 1))) == [key]
