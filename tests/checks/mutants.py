"""Wrong answers made of the solutions. python tests/checks/mutants.py [EXERCISE ...] tries them."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from equivalents import EQUIVALENT
from exercises import Solution, define, solutions, verdict

OPERATORS = """Add Sub, Sub Add, Mult Div Add, Div Mult FloorDiv, FloorDiv Div Mult, Mod FloorDiv,
    Pow Mult, MatMult Mult, And Or, Or And, Eq NotEq, NotEq Eq, Lt LtE GtE, LtE Lt Gt, Gt GtE LtE,
    GtE Gt Lt, In NotIn, NotIn In, Is IsNot, IsNot Is"""


def mutants(code: str, answer: str) -> Iterator[tuple[str, str]]:
    """(name, code) for every change of one place in the definition of `answer`."""
    tree = ast.parse(code)
    seen, names = {ast.unparse(tree)}, Counter()
    definition = next(node for node in tree.body if getattr(node, "name", "") == answer)
    for node, field, wrong in list(changes(definition, [])):
        right, before = getattr(node, field), ast.unparse(node)
        setattr(node, field, wrong)
        mutant, after = ast.unparse(tree), ast.unparse(node)
        setattr(node, field, right)
        with suppress(SyntaxError):
            if mutant not in seen and compile(mutant, "", "exec"):
                seen.add(mutant)
                names[name := label(before, after)] += 1
                yield name + f" #{names[name]}" * (names[name] > 1), mutant


def label(*texts: str) -> str:
    """`before -> after`; of long texts only the words that differ, and their beginning."""
    words = [text.split() for text in texts]
    for _ in range(2 * (max(map(len, texts)) > 30)):  # cuts equal beginnings, then equal ends
        same = [a == b for a, b in zip(*words)] + [False]
        words = [text[same.index(False) :][::-1] for text in words]
    short = [" ".join(text) for text in words]
    return " -> ".join(text if len(text) < 32 else f"{text[:30]}…" for text in short)


def changes(node: ast.AST, local: list[str]) -> Iterator[tuple[ast.AST, str, Any]]:
    """(node, field, wrong value) for all nodes from `node` on, given the local names."""
    if isinstance(node, ast.FunctionDef):
        bound = [n for n in ast.walk(node) if isinstance(getattr(n, "ctx", n), ast.arg | ast.Store)]
        local = sorted({getattr(n, "arg", getattr(n, "id", "")) for n in bound} - {""})
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in local:
        place = local.index(node.id)
        yield from ((node, "id", name) for name in (local[place + 1 :] + local[:place])[:2])
    for field, value in ast.iter_fields(node):
        many = isinstance(value, list)
        for wrong in (LISTS if many else FIELDS).get(field, lambda _: [])(value):
            yield node, field, wrong
        for i, child in enumerate(value if many else [value]):
            if isinstance(child, ast.AST) and field not in ("annotation", "returns", "exc"):
                for rule in (KINDS[kind] for kind in KINDS if isinstance(child, kind)):
                    for wrong in rule(child):
                        yield node, field, [*value[:i], wrong, *value[i + 1 :]] if many else wrong
                yield from changes(child, local)


def others(value: Any) -> list:
    """Wrong constants, or operators, in the place of this one."""
    rows = map(str.split, OPERATORS.split(","))
    swaps = [new for old, *row in rows if old == type(value).__name__ for new in row]
    return OTHERS.get(type(value), lambda _: [getattr(ast, new)() for new in swaps])(value)


def without(items: list) -> list[list]:
    return [items[:i] + items[i + 1 :] for i in range(len(items))]


def swapped(items: list) -> list[list]:
    return [items[:i] + items[i : i + 2][::-1] + items[i + 2 :] for i in range(len(items) - 1)]


OTHERS = {bool: lambda b: [not b], int: lambda n: [n + 1, n - 1], float: lambda x: [1.5 * x, 0.0]}
FIELDS = {"op": others, "value": others, "test": lambda _: [ast.Constant(b) for b in (True, False)]}
LISTS = {"elts": swapped, "ifs": without, "keywords": without}
LISTS |= {"args": lambda args: without(args) + swapped(args)}
LISTS |= {"body": lambda body: [[*body, ast.Break()]]}  # outside a loop it does not compile
LISTS |= {"ops": lambda ops: [[op, *ops[1:]] for op in others(ops[0])]}
KINDS = {
    ast.stmt: lambda n: [ast.Pass()] * (ast.unparse(n)[0] not in "'\""),  # but no docstring
    ast.AugAssign: lambda n: [ast.Assign([n.target], ast.BinOp(n.target, n.op, n.value), lineno=0)],
    ast.With: lambda n: [ast.If(ast.Constant(True), n.body, [])],
    ast.UnaryOp: lambda n: [n.operand],
    ast.Call: lambda n: [*n.args[:1], getattr(n.func, "value", n.func)],
}


def tried(solution: Solution) -> dict[str, str]:
    """For each mutant, and for "the solution", the check's verdict, "Correct" or "Not yet"."""
    verdicts = {}
    for name, code in [*mutants(solution.code, solution.answer), ("the solution", solution.code)]:
        try:
            said = verdict(solution.check, define(solution, code))
        except Exception as error:  # it cannot even be defined
            said = f"Not yet: {error}"
        verdicts[name] = said.splitlines()[-1].partition(":")[0]
    return verdicts


def row(exercise: str, verdicts: dict[str, str]) -> str:
    counts = Counter(verdicts.values())
    refused, accepted = counts["Not yet"] + counts["Not attempted yet"], counts["Correct"] - 1
    return f"{exercise:20}{len(verdicts) - 1:8}{refused:8}{accepted:11}"


def main(chosen: list[str]) -> None:
    print(f"{'exercise':20} mutants refused equivalent")
    every = solutions()
    for exercise in chosen or every:
        verdicts = tried(every[exercise])
        print(row(exercise, verdicts), flush=True)
        known = {"the solution", *EQUIVALENT.get(exercise, {})}
        for name in known ^ {
            name for name, said in verdicts.items() if not said.startswith("Not ")
        }:
            print(f"    {verdicts.get(name, 'listed, but no mutant')}: {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
