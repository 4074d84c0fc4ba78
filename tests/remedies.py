"""Find messages of start errors that say what is wrong, but not what to do: by the syntax of the package's files.

A message has a remedy if a clause of it begins with an imperative ("declare", "use", …) or says what must be. The parts
of a message that other functions return count only if every text that they return has a remedy.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Verbs with which remedies begin. "name" and "change" are also nouns, so that an article must follow.
VERBS = (
    "add",
    "change the",
    "check",
    "convert",
    "copy",
    "correct",
    "create",
    "declare",
    "delete",
    "download",
    "give",
    "install",
    "join",
    "keep",
    "leave",
    "load",
    "merge",
    "move",
    "name (?:a|an|another|one|the)",
    "print",
    "put",
    "remove",
    "rename",
    "report",
    "save",
    "serve",
    "set",
    "stop",
    "take",
    "use",
    "write",
)
_REMEDY = re.compile(rf"(?:^|[;:.,?)(]\s+|\b(?:or|and|so)\s+)(?:{'|'.join(VERBS)})\b|\bmust\b", re.IGNORECASE)
_PLACE = "\0"  # a value in a message, which is not a word


@dataclass(frozen=True, slots=True)
class Message:
    """A message without a remedy.

    Attributes:
        place: file and line.
        text: source of the message.
    """

    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Scope:
    """The place of an expression: what its names are looked up in.

    Attributes:
        module: file.
        function: innermost function; None at the top of the file.
    """

    module: ast.Module
    function: ast.FunctionDef | None = None

    def find_values(self, name: str) -> list[ast.expr]:
        """Return all expressions that are assigned to a name, in the function or else at the top of the file."""
        own = [] if self.function is None else list(ast.walk(self.function))
        return _list_values(own, name) or _list_values(self.module.body, name)


class Package:
    """The parsed files of a package.

    Args:
        root: directory of the package.
    """

    def __init__(self, root: Path) -> None:
        self.modules = {str(path.relative_to(root)): ast.parse(path.read_text()) for path in sorted(root.rglob("*.py"))}
        self.functions: dict[str, list[Scope]] = {}
        for module in self.modules.values():
            for node in ast.walk(module):
                if isinstance(node, ast.FunctionDef):
                    self.functions.setdefault(node.name, []).append(Scope(module, node))

    def find_without_remedy(self, error: str, folder: str = "") -> Iterator[Message]:
        """Yield the messages without a remedy.

        Args:
            error: name by which the errors are raised.
            folder: beginning of the paths whose errors count.
        """
        for path, module in self.modules.items():
            if not path.startswith(folder):
                continue
            # In the order of ast.walk, the innermost function of a node comes last.
            scopes = [Scope(module), *(Scope(module, n) for n in ast.walk(module) if isinstance(n, ast.FunctionDef))]
            inner = {id(node): scope for scope in scopes for node in ast.walk(scope.function or scope.module)}
            for node in ast.walk(module):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == error:
                    for argument in node.args:
                        if not self._has_remedy(argument, inner[id(node)], frozenset()):
                            yield Message(f"{path}:{node.lineno}", ast.unparse(argument))

    def _has_remedy(self, node: ast.expr, scope: Scope, seen: frozenset[str]) -> bool:
        """Return whether the value of an expression always has a remedy; `seen` has the names that led to it."""
        has_remedy = False
        match node:
            case ast.Starred() | ast.Attribute(attr="message" | "problems"):
                has_remedy = True  # the message of another start error, which is checked where it is raised
            case ast.Constant(value=str(text)):
                has_remedy = _says(text)
            case ast.JoinedStr():
                parts = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
                has_remedy = _says(_spell(node)) or any(self._has_remedy(part, scope, seen) for part in parts)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                has_remedy = _says(_spell(node)) or any(self._has_remedy(side, scope, seen) for side in (left, right))
            case ast.IfExp(body=body, orelse=other):
                has_remedy = all(self._has_remedy(side, scope, seen) for side in (body, other))
            case ast.BoolOp(op=ast.Or(), values=[*first, last]):  # the last value stands where the others are empty
                has_remedy = self._has_remedy(last, scope, seen) and all(self._returns_remedy(n, seen) for n in first)
            case ast.Call():
                has_remedy = self._returns_remedy(node, seen, may_be_empty=False)
            case ast.Name(id=name) if name not in seen:
                values = scope.find_values(name)
                has_remedy = bool(values) and all(self._has_remedy(n, scope, seen | {name}) for n in values)
            case ast.NamedExpr():  # tested before it is used, so that an empty text is never shown
                has_remedy = self._returns_remedy(node.value, seen)
        return has_remedy

    def _returns_remedy(self, node: ast.expr, seen: frozenset[str], *, may_be_empty: bool = True) -> bool:
        """Return whether all that a function of the package returns has a remedy, apart from empty texts if allowed."""
        called = node.func if isinstance(node, ast.Call) else None
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
        if name is None or name in seen:
            return False
        returned = [(s, n.value) for s in self.functions.get(name, []) for n in _list_returns(s) if n.value is not None]
        kept = [(s, n) for s, n in returned if not (may_be_empty and isinstance(n, ast.Constant) and n.value == "")]
        return bool(kept) and all(self._has_remedy(n, s, seen | {name}) for s, n in kept)


def _list_returns(scope: Scope) -> list[ast.Return]:
    return [node for node in ast.walk(scope.function or scope.module) if isinstance(node, ast.Return)]


def _list_values(nodes: Iterable[ast.AST], name: str) -> list[ast.expr]:
    """Return what is assigned to `name`; a named expression as itself."""
    found: list[ast.expr] = []
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)]) if target == name:
                found.append(node.value)
            case ast.NamedExpr(target=ast.Name(id=target)) if target == name:
                found.append(node)
    return found


def _spell(node: ast.expr) -> str:
    """Return the text of an expression, in which each value is one character other than a letter."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr():
            return "".join(map(_spell, node.values))
        case ast.BinOp(op=ast.Add()):
            return _spell(node.left) + _spell(node.right)
    return _PLACE


def _says(text: str) -> bool:
    return _REMEDY.search(text) is not None
