"""Measure the packages as the review of their structure did: `python -m tests.measure [FOLDER]`.

The table stands in docs/measures.md, beside the numbers of earlier commits. FOLDER is the root of another checkout.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("service/assay_service", "clients/assay_client", "training/assay_training")
COLUMNS = (
    *("package", "modules", "longest module", "functions", "median/p90/max lines", "over 30", "comments", "verbs"),
    *("tensor functions", "with shapes"),
)
Function = ast.FunctionDef | ast.AsyncFunctionDef

# First words of names that are verbs in the form of a command.
VERBS = set(
    re.findall(
        r"\w+",
        """
        accumulate activate adapt add adjust advise agree annotate answer append apply ask assemble assign attach
        augment average begin blend bootstrap build calibrate call check choose classify clip close collect combine
        compare complete compute configure connect construct convert copy count cover create cut decide declare decode
        dequantize describe diff disable divide draw drive drop dump embed encode end estimate evaluate exceed
        exchange exclude expect explain export extract fail fetch fill find finish fit flatten flush fold forget
        format fuse gather generate get give handle hash hide hold identify import infer init inspect is iterate join
        judge keep label learn list listen load locate log look make mark mask match measure merge mix mount multiply
        name narrow note observe open overwrite pack pad parse pass place pool predict prepare print push put query
        quote raise rank reach read recognize record recount redact refer refuse remind remove rename render repeat
        replace report require rerank resolve respell respond restore resume retry return roll round run sample save
        scatter score seed segment select send serve settle shape shard share shorten show shut sleep sort spell split
        start step stop strip submit subscribe sum support survey swap tabulate take test tokenize train transport
        treat trim try turn unpack unquote unwrap update use verify vote wait warn weigh whiten work write
        """,
    )
)
PREDICATES = {"can", "has", "may", "must", "needs"}  # `has_rows` is a verb phrase as well


def count_lines(function: Function) -> int:
    """Return the lines of a function without its docstring."""
    first = function.body[0]
    docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def find_public(tree: ast.Module) -> Iterator[Function]:
    """Yield the functions and methods of a module that others call by name."""
    for body in (tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))):
        for node in body:
            if isinstance(node, Function) and not node.name.startswith("_") and not is_property(node):
                yield node


def is_property(function: Function) -> bool:
    """Return whether a method is read like a variable, and so has a noun for a name."""
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def count_comments(text: str) -> tuple[int, int]:
    """Return the number of comments that a reader reads, and of lines with code; docstrings are neither."""
    documented = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    code, comments = set[int](), 0
    skipped = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            comments += not re.match(r"#\s*(noqa|type: ignore)[^#]*$", token.string)
        elif token.type not in skipped:
            code |= set(range(line, token.end[0] + 1)) - documented
    return comments, len(code)


def takes_tensors(function: Function) -> bool:
    """Return whether a parameter is declared as a tensor or an array."""
    declared = [a.annotation for a in (*function.args.args, *function.args.kwonlyargs) if a.annotation is not None]
    return any(re.search(r"Tensor\b|NDArray|\bFloats\b", ast.unparse(annotation)) for annotation in declared)


def gives_shapes(function: Function) -> bool:
    """Return whether the signature or the docstring of a function has a shape."""
    signature = ast.unparse(function.args)
    return bool(re.search(r"\['?(Torch)?Tensor, '", signature) or "`[" in (ast.get_docstring(function) or ""))


def measure(folder: Path, package: str) -> dict[str, str]:
    """Return the measures of a package by column."""
    texts = [path.read_text() for path in sorted((folder / package).rglob("*.py"))]
    trees = [ast.parse(text) for text in texts if text]
    lengths = sorted(count_lines(node) for tree in trees for node in ast.walk(tree) if isinstance(node, Function))
    public = [function for tree in trees for function in find_public(tree)]
    tensors = [function for function in public if takes_tensors(function)]
    comments, code = (sum(counts) for counts in zip(*map(count_comments, texts), strict=True))
    return {
        "package": Path(package).parts[0],
        "modules": str(len(trees)),
        "longest module": str(max(len(text.splitlines()) for text in texts)),
        "functions": str(len(lengths)),
        "median/p90/max lines": "/".join(str(lengths[int(len(lengths) * share)]) for share in (0.5, 0.9))
        + f"/{lengths[-1]}",
        "over 30": show_share([length > 30 for length in lengths]),
        "comments": f"{100 * comments / code:.1f}",
        "verbs": show_share([f.name.split("_")[0] in VERBS | PREDICATES for f in public]),
        "tensor functions": str(len(tensors)),
        "with shapes": show_share([gives_shapes(function) for function in tensors]),
    }


def show_share(hits: Sequence[bool]) -> str:
    """Return a share in percent."""
    return f"{100 * sum(hits) / len(hits):.1f} %" if hits else ""


def tabulate(folder: Path) -> str:
    """Return the table of all packages as Markdown."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    rows += [[measure(folder, package)[column] for column in COLUMNS] for package in PACKAGES]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.stdout.write(tabulate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT) + "\n")
