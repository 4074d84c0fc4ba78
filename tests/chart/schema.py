"""Write the service's own settings into the chart's schema: `python -m tests.chart.schema`.

So `helm` refuses unknown keys of the configuration, too. The rest of `helm/values.schema.json` is written by hand.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay_service.settings import Settings

FILE = Path(__file__).parents[2] / "helm" / "values.schema.json"
# Values of the chart, which renders them as options of the command.
OWN = {"keys", "insecure", "tls"}
# Only what helm must know: which keys there are, and the types of their values. The service checks the rest.
KEPT = {"$ref", "additionalProperties", "anyOf", "const", "enum", "exclusiveMinimum", "items", "maximum", "minimum"}
KEPT |= {"patternProperties", "properties", "type"}


def reduce(schema: Any) -> Any:
    """Return a schema without titles, descriptions, defaults and required keys, which a preset or manifest may give."""
    if isinstance(schema, list):
        return [reduce(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    reduced = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):  # their keys are names
            reduced[key] = {name: reduce(part) for name, part in value.items()}
        elif key in KEPT:
            reduced[key] = value if key in ("enum", "const") else reduce(value)
    return reduced


def build() -> dict[str, Any]:
    """Return the schema of the file, with the settings as they are in the code."""
    schema: dict[str, Any] = json.loads(FILE.read_text())
    settings = Settings.model_json_schema()
    definitions = settings.pop("$defs")
    config = reduce(settings)
    for name in OWN | {"directory"}:
        config["properties"].pop(name, None)
    schema["properties"]["config"] = config
    schema["$defs"] = {name: reduce(part) for name, part in definitions.items() if name != "TlsSettings"}
    return schema


if __name__ == "__main__":
    FILE.write_text(json.dumps(build(), indent=1, ensure_ascii=False) + "\n")
