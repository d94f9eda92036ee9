"""happo.py, hatrpo.py and mappo.py are copies of one another, and share their frame with the HIS scripts."""

import ast
import difflib

import pytest
from script_helpers import ROOT
from test_twins import MARK, key_of

NAMES = ("happo", "hatrpo", "mappo")
# What a script has in common with his_mpe.py by name but not by content, and why.
UNLIKE_HIS = {
    # settings of another algorithm, and for all benchmarks
    *("SCRIPT", "Args", "LIMITS: dict[str, tuple[float | None, float | None]]", "RESUMABLE", "check_args"),
    # no replay buffer to find memory for; other modules
    *("common", "common.device", "collections.abc"),
    *("mlp", "Actor.docstring", "Actor.forward", "Actor.__init__"),
    *("update_critic", "update_actors"),
    *(f"Learner.{name}" for name in ("docstring", "__init__", "update", "act", "modules")),
    *("Learner.state_dict", "Learner.load_state_dict"),
    # a rollout in place of a replay buffer, no warm-up, a round of updates is not divided, a decay has an end
    *("Run.__init__", "Run.state_dict", "Run.load_state_dict", "Run.save_best", "restore"),
    *("act_and_store", "train", "main"),
}


def source_of(name: str) -> str:
    return (ROOT / (f"{name}.py" if name.startswith("his_") else f"baselines/{name}.py")).read_text()


def parts(name: str, source: str | None = None) -> dict[str, tuple[str, str]]:
    """Name -> (syntax tree without positions, source text with the comments above) of each statement of a script.

    Unlike those of `test_twins` every class is divided: into its fields, each with its docstring, and methods.
    """
    text = source_of(name) if source is None else source
    lines, found = text.splitlines(), {}
    title, *body = ast.parse(text).body
    previous_end = title.end_lineno or 0
    for node in body:
        nodes: list[ast.stmt] = [node]
        prefix = ""
        if isinstance(node, ast.ClassDef):
            prefix = f"{node.name}."
            head = ast.Tuple(elts=[*node.bases, *node.decorator_list], ctx=ast.Load())
            found[node.name] = (ast.dump(head), "\n".join(lines[previous_end : node.lineno]))
            previous_end, nodes = node.lineno, node.body
        for i, child in enumerate(nodes):
            is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if is_docstring and i > 0:
                continue  # taken with the field above it
            after = nodes[i + 1] if i + 1 < len(nodes) and isinstance(child, ast.AnnAssign) else child
            after = after if isinstance(after, ast.Expr) else child
            key = prefix + ("docstring" if is_docstring else key_of(child))
            if isinstance(child, ast.ImportFrom):
                key = child.module or ""
            assert key not in found, f"{name}: {key} stands twice"
            tree = ast.dump(child) + (ast.dump(after) if after is not child else "")
            end = after.end_lineno or after.lineno
            found[key] = (tree, "\n".join(lines[previous_end:end]))
            previous_end = end
    return found


def his_parts() -> dict[str, tuple[str, str]]:
    """Those of his_mpe.py, without its pointer to the notes on the HIS paper in a docstring that is the same here."""
    return parts("his_mpe", source_of("his_mpe").replace(" (DEVIATION 7)", ""))


def unmarked_differences(one: dict[str, tuple[str, str]], other: dict[str, tuple[str, str]]) -> list[str]:
    """Statements that are not the same in both and without a `# DIFFERS: why` in one of them.

    A statement that only one of them has needs no mark where it is a function of its algorithm.
    """
    return [
        key
        for key in [*one, *(key for key in other if key not in one)]
        if one.get(key, ("",))[0] != other.get(key, ("",))[0]
        and not any(MARK.search(script[key][1]) for script in (one, other) if key in script)
        and (key in one and key in other or not (one.get(key) or other[key])[0].startswith("FunctionDef"))
    ]


@pytest.mark.parametrize("pair", [("happo", "mappo"), ("happo", "hatrpo"), ("mappo", "hatrpo")], ids="-".join)
def test_what_differs_is_marked(pair: tuple[str, str]) -> None:
    one, other = map(parts, pair)
    assert len(one) > 90
    assert unmarked_differences(one, other) == []
    common = [[key for key in script if key in one and key in other] for script in (one, other)]
    assert common[0] == common[1], "not in the same order"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_marked_differs(name: str) -> None:
    script, others = parts(name), [parts(other) for other in NAMES if other != name]
    marked = [key for key, (_, text) in script.items() if MARK.search(text)]
    assert 5 < len(marked) < 20
    assert [key for key in marked if all(key in o and o[key][0] == script[key][0] for o in others)] == []


@pytest.mark.parametrize("other", ["mappo", "hatrpo"])
def test_the_comments_of_equal_code_are_the_same(other: str) -> None:
    one, two = parts("happo"), parts(other)
    same = [key for key in one if key in two and one[key][0] == two[key][0]]
    unequal = [key for key in same if MARK.sub("", one[key][1]) != MARK.sub("", two[key][1])]
    assert unequal == []


@pytest.mark.parametrize("name", NAMES)
def test_the_frame_is_that_of_the_his_scripts(name: str) -> None:
    """Evaluation, saving, logging and the arguments for them are equal to those of his_mpe.py."""
    his, script = his_parts(), parts(name)
    both = [key for key in his if key in script]
    unequal = {key for key in both if his[key][0] != script[key][0]}
    fields = {key for key in unequal if key.startswith("Args.")}
    assert unequal - fields <= UNLIKE_HIS, unequal - fields - UNLIKE_HIS
    equal = set(both) - unequal
    assert {"evaluate", "Evaluation", "evaluate_and_record", "evaluate_run", "rates", "Run.save", "Run.due"} <= equal
    shared = {f"Args.{key}" for key in ("seed: int", "torch_threads: int", "eval_episodes: int", "resume: str")}
    assert shared <= equal and len(equal) > 45


def test_every_exception_from_the_frame_is_one() -> None:
    his = his_parts()
    unequal = set()
    for name in NAMES:
        script = parts(name)
        unequal |= {key for key in his if key in script and his[key][0] != script[key][0]}
    assert UNLIKE_HIS - unequal == set()


def test_happo_and_mappo_differ_by_order_factor_and_sharing() -> None:
    """Below the title: at most 40 changed lines in at most 8 hunks, none outside what they are about."""
    one, other = (source_of(name).partition('"""\n\nimport ')[2].splitlines() for name in ("mappo", "happo"))
    diff = list(difflib.unified_diff(one, other, lineterm="", n=0))[2:]
    hunks = [line for line in diff if line.startswith("@@")]
    changed = [line for line in diff if not line.startswith("@@")]
    assert 10 < len(changed) <= 40 and 3 < len(hunks) <= 8, (len(changed), len(hunks))
    happo, mappo = parts("happo"), parts("mappo")
    unequal = {key for key in mappo if mappo[key][0] != happo.get(key, ("",))[0]}
    assert unequal == {"SCRIPT", "Args.share_param: bool", "PRESETS", "update_actors", "make_actors"}
    assert happo.keys() - mappo.keys() == set()


def test_an_unmarked_change_is_found() -> None:
    text = source_of("happo")
    reference = parts("mappo")
    for old, new, key in (
        ("gamma: float = 0.99", "gamma: float = 0.9", "Args.gamma: float"),
        ("discount factor", "discounting", "Args.gamma: float"),
        ("advantage.std(correction=0)", "advantage.std()", "make_batch"),
        ("self.iteration += 1", "self.iteration += 2", "Learner.update"),
        ("from common.streams import Streams", "from common.streams import Streams as S", "common.streams"),
    ):
        assert text.count(old) >= 1, old
        assert unmarked_differences(reference, parts("happo", text.replace(old, new, 1))) == [key]


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_stand_in_the_order_of_the_house(name: str) -> None:
    lines = source_of(name).splitlines()
    blocks = [line.strip("# -") for line in lines if line.startswith("# ---- ")]
    assert blocks == "arguments,environment,networks,rollout buffer,updates,evaluation,checkpoint,main".split(",")
    functions = [n for n in ast.walk(ast.parse(source_of(name))) if isinstance(n, ast.FunctionDef)]
    assert max((n.end_lineno or 0) - n.lineno + 1 for n in functions) <= 60
