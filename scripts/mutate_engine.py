"""Are the tests of `engine/` tests that can fail? Puts one fault at a time into a copy of it and runs the fast ones.

    python scripts/mutate_engine.py --sample 150 --seed 1
    python scripts/mutate_engine.py --modules governor,pacing --sample 0     every place of two modules

Each fault is one turned comparison, operator, constant, condition or min/max, or one statement left out. Printed are
the faults that no test told; read them: some change nothing, or only speed or words. See docs/verification.md.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "cached,checkpoints,costs,drafts,engine,governor,pacing,pipe,policy,selection,sequences,speculation,stats,tree,turn"
)
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COUNTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}

# The judge, in a process of its own: tables first, then random orders and virtual time, fewer than `make test` does.
JUDGE = """
import sys, pytest
from hypothesis import settings
class Fewer:
    def pytest_collection_modifyitems(self, items):
        for item in items:
            test = getattr(item, "obj", None)
            if hasattr(test, "hypothesis"):
                own = test._hypothesis_internal_use_settings
                fewer = settings(own, max_examples=40, database=None, derandomize=True)
                test._hypothesis_internal_use_settings = fewer
tests = ["engine_tables", "engine_parts", "policy", "engine_cached", "engine_properties", "sim"]
slow = "sampled_tokens or biased or every_corner or each_technique or study_of or branches_pay or 32 or free or bursts"
slow += " or steep-0.0 or steep-0.3"
sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", f"not ({slow})",
                      *[f"tests/test_{name}.py" for name in tests]], plugins=[Fewer()]))
"""


def places(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    """Every node that can be turned, and how."""
    found: list[tuple[ast.AST, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Compare() if type(node.ops[0]) in COMPARED:
                found.append((node, "comparison"))
            case ast.BinOp() if type(node.op) in COUNTED:
                found.append((node, "operator"))
            case ast.AugAssign() if type(node.op) in COUNTED:
                found += [(node, "operator"), (node, "left out")]
            case ast.Constant() if isinstance(node.value, (bool, int, float)):
                found.append((node, "constant"))
            case ast.BoolOp():
                found.append((node, "and/or"))
            case ast.UnaryOp(op=ast.Not()):
                found.append((node, "condition"))
            case ast.If() | ast.IfExp():
                found.append((node, "condition"))
            case ast.Call(func=ast.Name(id="min" | "max")):
                found.append((node, "min/max"))
            case ast.Expr(value=ast.Call() | ast.Delete()) | ast.Delete() | ast.Continue() | ast.Break():
                found.append((node, "left out"))
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
                found.append((node, "left out"))
    return found


class _LeaveOut(ast.NodeTransformer):
    def __init__(self, node: ast.AST) -> None:
        self._node = node

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.copy_location(ast.Pass(), node) if node is self._node else self.generic_visit(node)


def turn(tree: ast.Module, node: ast.AST, how: str) -> str:
    """Put the fault in. Returns the new text of its place."""
    if how == "left out":
        _LeaveOut(node).visit(tree)
        return "(left out)"
    match node:
        case ast.Compare():
            node.ops[0] = COMPARED[type(node.ops[0])]()
        case ast.BinOp() | ast.AugAssign():
            node.op = COUNTED[type(node.op)]()
        case ast.Constant(value=bool()):
            node.value = not node.value
        case ast.Constant(value=int()):
            node.value += 1
        case ast.Constant(value=float()):
            node.value = 2 * node.value + 0.01
        case ast.BoolOp():
            node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        case ast.UnaryOp():
            node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
        case ast.If() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
            return f"not ({ast.unparse(node.test.operand)})"
        case ast.Call(func=ast.Name()):
            node.func.id = {"min": "max", "max": "min"}[node.func.id]
    return ast.unparse(node)


def judge(folder: Path, limit: float) -> bool:
    """Whether the tests find something; taking too long is finding."""
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("PYTHONPYCACHEPREFIX", None)
    try:
        done = subprocess.run([sys.executable, "-c", JUDGE], cwd=folder, env=env, capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--modules", default=MODULES, help="of engine/, with commas")
    parser.add_argument("--sample", type=int, default=150, help="faults to try, 0 for all")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pipeinfer-mutants-") as name:
        folder = Path(name)
        for part in ("pipeinfer_cpp", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        began = time.monotonic()
        if judge(folder, 600):
            sys.exit("The tests fail without a fault: mend that first.")
        limit = 20 + 4 * (time.monotonic() - began)
        files = {module: folder / "pipeinfer_cpp" / "engine" / f"{module}.py" for module in args.modules.split(",")}
        all_places = [
            (module, i)
            for module, path in files.items()
            for i in range(len(places(ast.parse(path.read_text()))))
        ]
        random.Random(args.seed).shuffle(all_places)
        tried = all_places[: args.sample or None]
        survived: Counter[str] = Counter()
        for n, (module, i) in enumerate(tried, 1):
            text = files[module].read_text()
            tree = ast.parse(text)
            node, how = places(tree)[i]
            line = getattr(node, "lineno", 0)
            before = text.splitlines()[line - 1].strip()
            after = turn(tree, node, how)
            files[module].write_text(ast.unparse(ast.fix_missing_locations(tree)))
            found = judge(folder, limit)
            files[module].write_text(text)
            if not found:
                survived[module] += 1
                print(f"{module}.py:{line} {how}: {before}  ->  {after}", flush=True)
            if n % 25 == 0:
                print(f"... {n} of {len(tried)}, {survived.total()} not found, {time.monotonic() - began:.0f} s",
                      file=sys.stderr, flush=True)
        print(f"{len(tried) - survived.total()} of {len(tried)} faults found, of {len(all_places)} places")


if __name__ == "__main__":
    main()
