"""Are the tests of `engine/` tests that can fail? Puts one fault at a time into a copy of it and runs the fast ones.

    python scripts/mutate_engine.py --sample 150 --seed 1
    python scripts/mutate_engine.py --modules governor,pacing --sample 0     every place of two modules

Each fault is one turned comparison, operator, constant, condition, any/all or min/max, or one statement left out.
Printed are the faults that no test told; read them: some change nothing, or only speed or words. See
docs/verification.md.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401  loaded once, not in each judge
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as of_hypothesis

ROOT = Path(__file__).resolve().parent.parent
ENGINE = Path("pipeinfer_cpp", "engine")
TESTS = [
    "engine_tables", "engine_parts", "engine_dispatch", "policy", "engine_cached", "engine_slots", "engine_properties",
    "sim",
]  # fmt: skip
"""Of `engine/` alone, in an order in which most faults are found early."""
SLOW = [
    "sampled_tokens", "biased", "every_corner", "each_technique", "study_of", "branches_pay", "32", "free", "bursts",
    "steep-0.0", "steep-0.3", "steep-0.1", "by_hand", "let_go", "driver_finds", "more_conversations", "few_slots",
    "is_calibrated",
]  # fmt: skip
"""Tests that `make test` has and this has not."""
COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COUNTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr,
}  # fmt: skip
OPPOSITE = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Fewer:
    """A plugin of pytest: fewer random orders than `make test` has, always the same; a fault is not made smaller."""

    def pytest_collection_modifyitems(self, items: Sequence[Any]) -> None:
        for item in items:
            test = getattr(item, "obj", None)
            if hasattr(test, "hypothesis"):
                test._hypothesis_internal_use_settings = of_hypothesis(
                    test._hypothesis_internal_use_settings,
                    max_examples=40,
                    database=None,
                    derandomize=True,
                    deadline=None,
                    phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )


def places(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    """Every node that can be turned, and how."""
    found: list[tuple[ast.AST, str]] = []
    left: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                left.update(below for decorator in node.decorator_list for below in ast.walk(decorator))
            case ast.If(test=ast.UnaryOp()) | ast.IfExp(test=ast.UnaryOp()):
                left.add(node.test)  # the same fault as turning the condition
    for node in ast.walk(tree):
        if node in left:
            continue
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
            case ast.Call(func=ast.Name(id=name)) if name in OPPOSITE:
                found.append((node, "min/max" if name.startswith("m") else "any/all"))
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
            node.func.id = OPPOSITE[node.func.id]
    return ast.unparse(node)


def judge(folder: Path, cpu_s: int, *options: str) -> bool:
    """Whether the tests find something; computing for more than `cpu_s` seconds is finding, and so is a hang."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path[:0] = [str(folder), str(folder / "tests")]
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        tests = [f"tests/test_{name}.py" for name in TESTS]
        asked = ["-x", "-q", "-p", "no:cacheprovider", "-k", f"not ({' or '.join(SLOW)})", *options, *tests]
        os._exit(int(pytest.main(asked, plugins=[Fewer()])))
    until = time.monotonic() + 60 + 20 * cpu_s
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status != 0
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return True


def where(tree: ast.Module, node: ast.AST) -> str:
    """The class and function that a place is in."""

    def path(within: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(within):
            if node in ast.walk(child):
                if isinstance(child, ast.ClassDef | ast.FunctionDef):
                    yield child.name
                yield from path(child)
                return

    return ".".join(path(tree)) or "(module)"


FOLDER = Path()
"""This process's copy of the project."""


def begin() -> None:
    """A copy for this process."""
    global FOLDER
    FOLDER = Path(tempfile.mkdtemp(prefix="copy-"))
    for part in ("pipeinfer_cpp", "tests"):
        shutil.copytree(ROOT / part, FOLDER / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", FOLDER)
    sys.pycache_prefix = str(FOLDER / "compiled")
    sys.dont_write_bytecode = False
    judge(FOLDER, 600, "--collect-only")  # compiles everything, once
    sys.dont_write_bytecode = True


def plain(_: int) -> tuple[bool, float]:
    """What the tests say without a fault, and the seconds that they compute for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    return judge(FOLDER, 600), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def attempt(place: tuple[str, int, int]) -> tuple[str, str]:
    """Put one fault in. Returns its module, and what it is where nothing found it, else nothing."""
    module, i, cpu_s = place
    file = FOLDER / ENGINE / f"{module}.py"
    text = file.read_text()
    tree = ast.parse(text)
    node, how = places(tree)[i]
    at, before = where(tree, node), text.splitlines()[getattr(node, "lineno", 1) - 1].strip()
    after = turn(tree, node, how)
    file.write_text(ast.unparse(ast.fix_missing_locations(tree)))
    found = judge(FOLDER, cpu_s)
    file.write_text(text)
    return module, "" if found else f"{module} {at}, {how}: {before}  ->  {after}"


def main() -> None:
    modules = sorted(path.stem for path in (ROOT / ENGINE).glob("*.py") if path.stem != "__init__")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--modules", default=",".join(modules), help="of engine/, with commas")
    parser.add_argument("--sample", type=int, default=150, help="faults to try, 0 for all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    args = parser.parse_args()
    all_places = [
        (module, i)
        for module in args.modules.split(",")
        for i in range(len(places(ast.parse((ROOT / ENGINE / f"{module}.py").read_text()))))
    ]
    random.Random(args.seed).shuffle(all_places)
    tried = all_places[: args.sample or None]
    began, survived = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="pipeinfer-mutants-") as name:
        tempfile.tempdir = name
        with ProcessPoolExecutor(args.jobs, initializer=begin) as pool:
            failed, cpu_s = pool.submit(plain, 0).result()
            if failed:
                sys.exit("The tests fail without a fault: mend that first.")
            limit = 10 + int(3 * cpu_s)
            results = pool.map(attempt, [(*place, limit) for place in tried])
            for n, (module, told) in enumerate(results, 1):
                if told:
                    survived[module] += 1
                    print(told, flush=True)
                if n % 10 == 0:
                    print(f"... {n} of {len(tried)}, {survived.total()} not found, {time.monotonic() - began:.0f} s",
                          file=sys.stderr, flush=True)  # fmt: skip
    print(f"{len(tried) - survived.total()} of {len(tried)} faults found, of {len(all_places)} places")


if __name__ == "__main__":
    main()
