"""Small wrong edits of a Python file, one at a time: what scripts/mutation_check.py asks the tests to notice."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OTHER = {  # an operator → what stands there instead
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.Lt: (ast.LtE, ast.GtE),  # off by the boundary, and the other way round
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
NAMES = {"min": "max", "max": "min", "all": "any", "any": "all", "floor": "ceil", "minimum": "maximum"}
NAMES |= {
    "maximum": "minimum",
    "cummin": "cummax",
    "amax": "amin",
    "ones_like": "zeros_like",
    "zeros_like": "ones_like",
}
FREE = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)  # what they say may be said otherwise
SPARED = ("annotation", "returns", "decorator_list")


@dataclass
class Mutant:
    """One edit: in `parent`, the child at `field` (of a list, at `index`) becomes `new`."""

    path: Path
    line: int
    before: str
    after: str
    scope: tuple[ast.FunctionDef, str] | None  # the outermost function, with its class's name before its own
    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST

    def swap(self, new: ast.AST) -> ast.AST:
        """Put `new` into its place; returns what was there."""
        held = getattr(self.parent, self.field)
        if self.index is None:
            setattr(self.parent, self.field, new)
            return held
        held[self.index], old = new, held[self.index]
        return old


def mutants(path: Path) -> tuple[ast.Module, list[Mutant]]:
    """The file's tree, and all its mutants, in the order of its lines."""
    tree = ast.parse(path.read_text())
    return tree, list(_within(tree, path, None, ""))


def _within(node: ast.AST, path: Path, scope: tuple[ast.FunctionDef, str] | None, prefix: str) -> Iterator[Mutant]:
    for field, index, child in _children(node):
        if isinstance(child, FREE) or _is_words(child):
            continue
        inner = scope
        if scope is None and isinstance(child, ast.FunctionDef):
            inner = child, prefix + child.name
        for new in _instead_of(child, inner):
            ast.copy_location(new, child)
            ast.fix_missing_locations(new)
            line = getattr(child, "lineno", getattr(node, "lineno", 0))
            shown = node if not hasattr(child, "lineno") else child  # an operator is shown in its expression
            mutant = Mutant(path, line, ast.unparse(shown), "", inner, node, field, index, new)
            old = mutant.swap(new)
            mutant.after = ast.unparse(shown if shown is node else new)
            mutant.swap(old)
            yield mutant
        is_class = isinstance(child, ast.ClassDef)
        yield from _within(child, path, inner, f"{child.name}." if is_class else prefix)


def _children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    for field, value in ast.iter_fields(node):
        if field in SPARED:
            continue
        if isinstance(value, ast.AST):
            yield field, None, value
        elif isinstance(value, list):
            yield from ((field, i, one) for i, one in enumerate(value) if isinstance(one, ast.AST))


def _is_words(node: ast.AST) -> bool:
    """A docstring, or a zip's `strict`, which is an assertion."""
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _instead_of(node: ast.AST, scope: tuple[ast.FunctionDef, str] | None) -> Iterator[ast.AST]:
    """What may stand there instead of this node."""
    yield from (other() for other in OTHER.get(type(node), ()))
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 1.1 if value else 1.0)
        case ast.MatchValue(value=ast.Constant(value=str(value))):
            yield ast.MatchValue(ast.Constant(value + "_"))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.If() | ast.While() | ast.IfExp() if not isinstance(node.test, ast.Compare):
            yield _like(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Return(value=ast.expr()):
            yield ast.Return(ast.Constant(None))
        case ast.Expr() | ast.AugAssign() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Assign() if scope and _is_bound_before(node, scope[0]):
            yield ast.Pass()
        case ast.Call():
            yield from _other_calls(node)


def _other_calls(call: ast.Call) -> Iterator[ast.AST]:
    """Another function, each keyword left out, and the call left out: x.f(…) → x, math.f(x) → x."""
    match call.func:
        case ast.Name(id=name) if name in NAMES:
            yield _like(call, func=ast.Name(NAMES[name], ast.Load()))
        case ast.Attribute(attr=name) if name in NAMES:
            yield _like(call, func=_like(call.func, attr=NAMES[name]))
    for i, keyword in enumerate(call.keywords):
        if keyword.arg == "strict":
            continue
        yield _like(call, keywords=call.keywords[:i] + call.keywords[i + 1 :])
        if keyword.arg in ("min", "max"):
            turned = ast.keyword(NAMES[keyword.arg], keyword.value)
            yield _like(call, keywords=[*call.keywords[:i], turned, *call.keywords[i + 1 :]])
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="math" | "torch")), args=[only], keywords=[]):
            yield only
        case ast.Call(func=ast.Name(id="reversed"), args=[only]):
            yield only
        case ast.Call(func=ast.Attribute(value=ast.Name(id="math" | "torch" | "inspect"))):
            pass
        case ast.Call(func=ast.Attribute(value=value)):
            yield value


def _like(node: ast.AST, **changed: object) -> ast.AST:
    """The node but for what is changed."""
    return type(node)(**(dict(ast.iter_fields(node)) | changed))


def _is_bound_before(node: ast.Assign, function: ast.FunctionDef) -> bool:
    """That a name it sets has another value without it: elsewhere it would only be undefined, which proves nothing."""
    names = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    arguments = function.args
    bound = {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    for other in ast.walk(function):
        if isinstance(other, ast.Name) and isinstance(other.ctx, ast.Store) and other.lineno < node.lineno:
            bound.add(other.id)
    return bool(names) and names <= bound
