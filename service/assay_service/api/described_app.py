"""An application whose OpenAPI document has only answers that it gives."""

from typing import Any

from fastapi import FastAPI

# FastAPI's own body of a 422, which no route answers: native errors and those of wires have forms of their own.
_UNUSED = ("HTTPValidationError", "ValidationError")


class DescribedApp(FastAPI):
    """FastAPI without the 422 that it adds to every route with a body."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, without answers in FastAPI's own form."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                if _UNUSED[0] in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        for name in _UNUSED:
            document["components"]["schemas"].pop(name, None)
        return document
