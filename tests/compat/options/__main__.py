"""Print the tables of docs/compat-options.md."""

from tests.compat.options import build_tables

print("\n".join(build_tables()))  # noqa: T201
