"""Validate objects of Kubernetes' own kinds: `python validate.py VERSION < OBJECTS`, with `kubernetes-validate`.

It reads a JSON list of objects, and prints a JSON list of `[index, fault]`. Objects of other kinds are faults, too.
"""

import json
import sys

import kubernetes_validate

faults = []
for index, item in enumerate(json.load(sys.stdin)):
    try:
        kubernetes_validate.validate(item, sys.argv[1], strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        faults.append([index, f"no schema of {item['apiVersion']} {item['kind']}"])
    except kubernetes_validate.ValidationError as error:
        faults.append([index, f"{'.'.join(map(str, error.path))}: {error.message}"])
json.dump(faults, sys.stdout)
